//! The threads that the swarm runs on.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// How much less important they are than all others (`nice`): a third as much, where they compete for a processor.
const NICENESS: i32 = 5;

/// A runtime of its own, which ends without being waited for.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name("libp2p")
            .on_thread_start(|| {
                // On Linux this is the calling thread's alone.
                if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                    tracing::debug!(%error, "the threads of libp2p keep their priority");
                }
            })
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> Handle {
        self.0.as_ref().expect("there until it is dropped").handle().clone()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
