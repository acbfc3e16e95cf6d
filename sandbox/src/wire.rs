//! What a worker and its parent say to each other, over one Unix socket.
//!
//! A message is the length of its head (4 bytes, little endian), the head (canonical bytes, as everywhere in
//! Spare), and then the bodies whose lengths the head names, one after the other. So files go through the
//! socket once, and are nowhere copied to be wrapped.
//!
//! | parent | worker |
//! |---|---|
//! | | [`Report::Ready`] |
//! | [`Order::Compile`], module | [`Report::Artefact`], artefact; or [`Report::Refused`] |
//! | [`Order::Run`], a descriptor of the artefact, standard input, inputs | [`Report::Step`], what was printed; any number of times |
//! | [`Answer`] to each step | |
//! | | [`Report::Outcome`], standard output and error, outputs; or [`Report::Refused`], or [`Report::Failed`] |
//!
//! Bytes go through the socket even where they are many: it moves some 2 GB/s, so that sharing memory would
//! save less than a percent of any real job, and would need system calls that the jail does without. The
//! artefact is a descriptor, since it is mapped and not read.
//!
//! **Invariant:** a length is checked before anything is allocated for it, and memory for a body grows only
//! as its bytes arrive. The parent takes nothing else from a worker, descriptors neither: it reads without
//! room for them, so that the kernel drops them.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use spare_proofs::encode::{self, DecodeError};

use crate::jail::Walls;
use crate::task::{Determinism, Exit, Input, Limits, Outcome, Output, Task};

/// Most bytes of a head: names of some 50,000 files.
pub(crate) const HEAD_MAX_BYTES: usize = 4 << 20;

/// Most bytes of a sentence that a worker says in an [`Exit`] or a refusal.
pub(crate) const TEXT_MAX_BYTES: usize = 4 << 10;

/// Most bytes of an output's path.
const PATH_MAX_BYTES: usize = 4 << 10;

/// What is allocated for a body before any of it has arrived, in bytes.
const FIRST_BYTES: usize = 1 << 20;

/// What a worker is to do. It does it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Compile the module that follows.
    Compile {
        /// Length of the module.
        module_bytes: u64,
    },
    /// Run the program whose artefact follows as a descriptor, on the inputs that follow it.
    Run(TaskHead),
}

/// What the parent says to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Go on.
    On,
    /// Stop the program, and report what came of it.
    Stop,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It is jailed, has its engine, and waits for an order.
    Ready {
        /// What it compiles and runs under; a worker of another build than its parent's must not work for it.
        configuration: [u8; 32],
        /// The jail that it built.
        walls: Walls,
    },
    /// The artefact follows.
    Artefact {
        /// Its length.
        artefact_bytes: u64,
    },
    /// The program does not compile, or its artefact does not load.
    Refused(String),
    /// The program got this far. The worker waits for an [`Answer`].
    Step {
        /// Fuel used.
        fuel: u64,
        /// Length of what it printed since the last step.
        stdout_bytes: u64,
        /// The same of standard error.
        stderr_bytes: u64,
    },
    /// The program ended.
    Outcome(OutcomeHead),
    /// The machine failed the program.
    Failed(String),
}

/// A [`Task`] without its bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskHead {
    args: Vec<String>,
    env: Vec<(String, String)>,
    stdin_bytes: u64,
    inputs: Vec<(String, u64)>,
    limits: Limits,
    seed: [u8; 32],
    starts_at_s: u64,
    determinism: Determinism,
}

/// An [`Outcome`] without its bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutcomeHead {
    exit: Exit,
    fuel: u64,
    memory_peak_bytes: u64,
    memory_refused: bool,
    output_refused: bool,
    stdout_bytes: u64,
    stderr_bytes: u64,
    log_cut: bool,
    outputs: Vec<(String, u64)>,
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The socket: closed, or the reader's own reasons to stop.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The head's length is out of bounds.
    #[error("a head of {0} bytes")]
    TooLong(usize),
    /// The head is not a message.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

/// What an outcome claims, and the task does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImpossibleOutcome {
    /// More of something than its limit.
    #[error("{amount} {what}, where at most {max} are allowed")]
    Beyond {
        /// Of what.
        what: &'static str,
        /// How much.
        amount: u64,
        /// The limit.
        max: u64,
    },
    /// A path that leads out of the outputs, is there twice, or is out of order.
    #[error("an output with the path {0:?}")]
    Path(String),
}

/// Sends a head.
pub(crate) fn send<T: Serialize>(to: &mut impl Write, head: &T) -> io::Result<()> {
    let bytes = encode::to_bytes(head);
    if bytes.len() > HEAD_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the head of a message is too long"));
    }
    let mut frame = (bytes.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(&bytes);
    to.write_all(&frame)
}

/// Receives a head.
pub(crate) fn receive<T: Serialize + DeserializeOwned>(from: &mut impl Read) -> Result<T, ReceiveError> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > HEAD_MAX_BYTES {
        return Err(ReceiveError::TooLong(len));
    }
    let bytes = receive_body(from, len as u64)?;
    Ok(encode::from_bytes(&bytes, HEAD_MAX_BYTES)?)
}

/// Receives a body whose length has been checked.
pub(crate) fn receive_body(from: &mut impl Read, len_bytes: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + start.max(FIRST_BYTES)), 0);
        from.read_exact(&mut bytes[start..])?;
    }
    Ok(bytes)
}

/// Sends a descriptor, with one byte to carry it.
pub(crate) fn send_file(socket: impl AsFd, file: impl AsFd) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// Receives a descriptor and the byte that carries it.
pub(crate) fn receive_file(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    files.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
}

impl TaskHead {
    /// What of `task` is sent first.
    pub(crate) fn of(task: &Task) -> Self {
        Self {
            args: task.args.clone(),
            env: task.env.clone(),
            stdin_bytes: task.stdin.len() as u64,
            inputs: task.inputs.iter().map(|input| (input.path.clone(), input.bytes.len() as u64)).collect(),
            limits: task.limits,
            seed: task.seed,
            starts_at_s: task.starts_at_s,
            determinism: task.determinism,
        }
    }

    /// Receives the bodies.
    pub(crate) fn complete(self, from: &mut impl Read) -> io::Result<Task> {
        let stdin = receive_body(from, self.stdin_bytes)?;
        let inputs =
            self.inputs.into_iter().map(|(path, len)| Ok(Input { path, bytes: receive_body(from, len)? }));
        Ok(Task {
            args: self.args,
            env: self.env,
            stdin,
            inputs: inputs.collect::<io::Result<_>>()?,
            limits: self.limits,
            seed: self.seed,
            starts_at_s: self.starts_at_s,
            determinism: self.determinism,
        })
    }
}

/// Sends a task's bodies, in the order in which its head names them.
pub(crate) fn send_task_bodies(to: &mut impl Write, task: &Task) -> io::Result<()> {
    to.write_all(&task.stdin)?;
    task.inputs.iter().try_for_each(|input| to.write_all(&input.bytes))
}

/// Sends an outcome, head and bodies.
pub(crate) fn send_outcome(to: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    send(to, &Report::Outcome(OutcomeHead::of(outcome)))?;
    to.write_all(&outcome.stdout)?;
    to.write_all(&outcome.stderr)?;
    outcome.outputs.iter().try_for_each(|output| to.write_all(&output.bytes))
}

impl OutcomeHead {
    fn of(outcome: &Outcome) -> Self {
        Self {
            exit: with_short_text(&outcome.exit),
            fuel: outcome.fuel,
            memory_peak_bytes: outcome.memory_peak_bytes,
            memory_refused: outcome.memory_refused,
            output_refused: outcome.output_refused,
            stdout_bytes: outcome.stdout.len() as u64,
            stderr_bytes: outcome.stderr.len() as u64,
            log_cut: outcome.log_cut,
            outputs: outcome
                .outputs
                .iter()
                .map(|output| (output.path.clone(), output.bytes.len() as u64))
                .collect(),
        }
    }

    /// Checks that a task with these limits can have come to this.
    pub(crate) fn verify(&self, limits: &Limits) -> Result<(), ImpossibleOutcome> {
        let output_bytes = self.outputs.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let text_bytes = match &self.exit {
            Exit::Trapped(text) | Exit::Refused(text) => text.len() as u64,
            Exit::Code(_) | Exit::OutOfFuel | Exit::Stopped => 0,
        };
        for (what, amount, max) in [
            ("fuel", self.fuel, limits.fuel),
            ("bytes of memory", self.memory_peak_bytes, limits.memory_bytes),
            ("bytes of standard output", self.stdout_bytes, limits.log_bytes),
            ("bytes of standard error", self.stderr_bytes, limits.log_bytes),
            ("bytes of outputs", output_bytes, limits.output_bytes),
            ("outputs", self.outputs.len() as u64, u64::from(limits.output_files)),
            ("bytes of explanation", text_bytes, TEXT_MAX_BYTES as u64),
        ] {
            if amount > max {
                return Err(ImpossibleOutcome::Beyond { what, amount, max });
            }
        }
        verify_paths(&self.outputs)
    }

    /// Receives the bodies.
    pub(crate) fn complete(self, from: &mut impl Read) -> io::Result<Outcome> {
        let stdout = receive_body(from, self.stdout_bytes)?;
        let stderr = receive_body(from, self.stderr_bytes)?;
        let outputs =
            self.outputs.into_iter().map(|(path, len)| Ok(Output { path, bytes: receive_body(from, len)? }));
        Ok(Outcome {
            exit: self.exit,
            fuel: self.fuel,
            memory_peak_bytes: self.memory_peak_bytes,
            memory_refused: self.memory_refused,
            output_refused: self.output_refused,
            stdout,
            stderr,
            log_cut: self.log_cut,
            outputs: outputs.collect::<io::Result<_>>()?,
        })
    }
}

/// Checks that whoever writes outputs to a disk by these paths writes nowhere else, and nothing twice.
fn verify_paths(outputs: &[(String, u64)]) -> Result<(), ImpossibleOutcome> {
    let mut last: Option<&str> = None;
    for (path, _) in outputs {
        let names_are_plain = path.split('/').all(|name| !matches!(name, "" | "." | ".."));
        let is_plain = names_are_plain && path.len() <= PATH_MAX_BYTES && !path.contains('\0');
        if !is_plain || last.is_some_and(|last| last >= path.as_str()) {
            return Err(ImpossibleOutcome::Path(path.chars().take(100).collect()));
        }
        last = Some(path);
    }
    Ok(())
}

fn with_short_text(exit: &Exit) -> Exit {
    match exit {
        Exit::Trapped(text) => Exit::Trapped(shortened(text)),
        Exit::Refused(text) => Exit::Refused(shortened(text)),
        other => other.clone(),
    }
}

/// As much of `text` as may be sent.
pub(crate) fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { fuel: 10, memory_bytes: 10, output_bytes: 10, output_files: 2, log_bytes: 10 }
    }

    fn outcome() -> Outcome {
        Outcome {
            exit: Exit::Trapped("unreachable".into()),
            fuel: 10,
            memory_peak_bytes: 10,
            memory_refused: true,
            output_refused: false,
            stdout: b"out".to_vec(),
            stderr: b"err".to_vec(),
            log_cut: false,
            outputs: vec![
                Output { path: "a/b".into(), bytes: vec![1; 4] },
                Output { path: "a/c".into(), bytes: vec![2; 6] },
            ],
        }
    }

    #[test]
    fn an_outcome_arrives_as_it_was_sent() {
        let mut bytes = Vec::new();
        send_outcome(&mut bytes, &outcome()).unwrap();
        let from = &mut &bytes[..];
        let Ok(Report::Outcome(head)) = receive(from) else { panic!("an outcome was sent") };
        assert_eq!(head.verify(&limits()), Ok(()));
        assert_eq!(head.complete(from).unwrap(), outcome());
        assert!(from.is_empty());
    }

    #[test]
    fn a_task_arrives_as_it_was_sent() {
        let task = Task {
            args: vec!["program".into()],
            env: vec![("A".into(), "B".into())],
            stdin: b"in".to_vec(),
            inputs: vec![Input { path: "x".into(), bytes: vec![7; 3 << 20] }],
            limits: limits(),
            seed: [1; 32],
            starts_at_s: 5,
            determinism: Determinism::Free,
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &Order::Run(TaskHead::of(&task))).unwrap();
        send_task_bodies(&mut bytes, &task).unwrap();
        let from = &mut &bytes[..];
        let Ok(Order::Run(head)) = receive(from) else { panic!("an order to run was sent") };
        assert_eq!(head.complete(from).unwrap(), task);
    }

    #[test]
    fn what_no_task_can_come_to_is_refused() {
        let lie = |change: fn(&mut OutcomeHead)| {
            let mut head = OutcomeHead::of(&outcome());
            change(&mut head);
            head.verify(&limits())
        };
        assert_eq!(lie(|_| ()), Ok(()));
        assert!(lie(|head| head.fuel = 11).is_err());
        assert!(lie(|head| head.memory_peak_bytes = 11).is_err());
        assert!(lie(|head| head.stdout_bytes = u64::MAX).is_err());
        assert!(lie(|head| head.stderr_bytes = 11).is_err());
        assert!(lie(|head| head.outputs[0].1 = u64::MAX).is_err(), "the sum must not wrap");
        assert!(lie(|head| head.outputs.push(("b".into(), 0))).is_err(), "three outputs");
        assert!(lie(|head| head.exit = Exit::Refused("x".repeat(TEXT_MAX_BYTES + 1))).is_err());
        assert!(lie(|head| head.outputs[1].0 = "a/b".into()).is_err(), "twice the same");
        for path in ["/etc/passwd", "../x", "b/../../x", "b//x", "", "b/", "b/.", "b\0"] {
            let mut head = OutcomeHead::of(&outcome());
            head.outputs[1].0 = path.into();
            assert!(matches!(head.verify(&limits()), Err(ImpossibleOutcome::Path(_))), "{path:?}");
        }
    }

    #[test]
    fn heads_that_are_too_long_or_no_heads_are_refused() {
        let long = (HEAD_MAX_BYTES as u32 + 1).to_le_bytes();
        assert!(matches!(receive::<Report>(&mut &long[..]), Err(ReceiveError::TooLong(_))));
        let mut garbage = 3u32.to_le_bytes().to_vec();
        garbage.extend([0xff; 3]);
        assert!(matches!(receive::<Report>(&mut &garbage[..]), Err(ReceiveError::Malformed(_))));
        assert!(
            matches!(receive::<Report>(&mut &[1, 0, 0, 0][..]), Err(ReceiveError::Socket(_))),
            "nothing follows"
        );
    }

    #[test]
    fn a_lie_about_a_length_costs_no_memory() {
        let refused = receive_body(&mut &[0u8; 10][..], 1 << 60).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_bytes_of_messages_are_pinned() {
        let mut bytes = Vec::new();
        send(&mut bytes, &Report::Step { fuel: 300, stdout_bytes: 1, stderr_bytes: 0 }).unwrap();
        send(&mut bytes, &Answer::Stop).unwrap();
        send(&mut bytes, &Order::Compile { module_bytes: 5 }).unwrap();
        send(&mut bytes, &Report::Failed("no".into())).unwrap();
        assert_eq!(
            bytes,
            [5, 0, 0, 0, 3, 0xac, 2, 1, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 0, 5, 4, 0, 0, 0, 5, 2, b'n', b'o']
        );
    }
}
