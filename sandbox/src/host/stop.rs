//! Ending a call from another thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::WorkerError;
use super::child::Child;

/// Stops a call from another thread, at any time; also one that has not begun. A clone stops the same call.
#[derive(Clone, Default)]
pub struct Stop(Arc<Mutex<Stopping>>);

#[derive(Default)]
struct Stopping {
    asked: bool,
    child: Option<Arc<Child>>,
}

impl Stop {
    /// A stop that nobody has asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the call: it returns [`WorkerError::Stopped`] soon. For an outcome until here, return
    /// [`Go::Stop`] from a step instead.
    pub fn stop(&self) {
        let mut stopping = self.stopping();
        stopping.asked = true;
        if let Some(child) = &stopping.child {
            child.kill();
        }
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.stopping().asked
    }

    /// Lets the stop reach `child`, unless it was asked for already.
    pub(super) fn attach(&self, child: &Arc<Child>) -> Result<(), WorkerError> {
        let mut stopping = self.stopping();
        stopping.child = Some(Arc::clone(child));
        if stopping.asked { Err(WorkerError::Stopped) } else { Ok(()) }
    }

    /// Lets the stop reach no process any more.
    pub(super) fn detach(&self) {
        self.stopping().child = None;
    }

    fn stopping(&self) -> MutexGuard<'_, Stopping> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
