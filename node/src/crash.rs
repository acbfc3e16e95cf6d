//! Crash points: places at which a test has this process end as by SIGKILL.
//!
//! `SPARE_CRASH_AT="NAME"` ends it when it comes to the point of that name, `"NAME:3"` when it comes there for the third time. Without the
//! variable a point costs a look at a constant.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The point at which to end, and how often it is still to be passed.
static AT: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();

fn parse(text: &str) -> (String, AtomicU32) {
    match text.rsplit_once(':').and_then(|(name, times)| Some((name, times.parse().ok()?))) {
        Some((name, times)) => (name.to_owned(), AtomicU32::new(times)),
        None => (text.to_owned(), AtomicU32::new(1)),
    }
}

/// Ends the process here, if that is what the environment wants.
pub fn point(name: &str) {
    let at = AT.get_or_init(|| std::env::var("SPARE_CRASH_AT").ok().map(|text| parse(&text)));
    let Some((_, times)) = at.as_ref().filter(|(wanted, _)| wanted == name) else { return };
    if times.fetch_sub(1, Ordering::Relaxed) == 1 {
        // As a power cut of the process: nothing is flushed, nothing is dropped.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
