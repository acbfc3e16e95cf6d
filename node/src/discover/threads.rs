//! The threads that the swarm runs on.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// How much less important they are than all others (`nice`): a tenth as much, where they compete for a processor.
const NICENESS: i32 = 10;

/// A runtime of its own, which ends without being waited for.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        // A thread that has the processor keeps it for some milliseconds, whatever its priority, so that half of them are left to others.
        let processors = std::thread::available_parallelism()?.get();
        let runtime = Builder::new_multi_thread()
            .thread_name("libp2p")
            .worker_threads((processors / 2).max(1))
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
