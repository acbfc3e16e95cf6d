//! Jobs: what a client orders, what a provider says came out of it, and what that costs.
//!
//! ```text
//! Work     what is to be run: module, arguments, inputs, limits. It names nobody, so its hash is the same wherever it is run
//! Order    the client: run the work of this hash under this deal; should we disagree on what comes out, these verifiers run it again
//! Ran      what came out. For work that is deterministic, the same on every machine of the same configuration
//! Receipt  the provider: under this order this came out
//! ```
//!
//! A job is paid for by what can be counted again: starts, fuel, memory limit times fuel, bytes of output. What it costs at most follows from the work
//! alone, so an order needs no ceiling of its own: an escrow that covers that much covers the job.
//!
//! Order and receipt are short, so that both fit a transaction: work goes beside its order, as its bytes do.

use serde::{Deserialize, Serialize};
use spare_proofs::encode::to_bytes;
use spare_proofs::tree::Root;

use crate::amount::{Amount, PRICE_MAX, SUPPLY_MAX};
use crate::deal::DealId;
use crate::keys::PublicKey;
use crate::signed::Signable;

/// Most bytes of arguments, environment and names of inputs in an order.
pub const TEXT_MAX_BYTES: usize = 64 * 1024;
/// Most input files of a job.
pub const INPUTS_MAX: usize = 1024;
/// Longest path of a file of a job, in bytes.
pub const PATH_MAX_BYTES: usize = 512;
/// Longest text in a receipt that says how a job ended, in bytes.
pub const REASON_MAX_BYTES: usize = 512;
/// Longest encoded work, in bytes: its texts, and for each input its hash and length.
pub const WORK_MAX_BYTES: usize = TEXT_MAX_BYTES + INPUTS_MAX * 48 + 4096;
/// Memory of a job beside its limits and its inputs.
pub const JOB_OVERHEAD_BYTES: u64 = 64 << 20;
/// Most verifiers that an order names.
pub const VERIFIERS_MAX: usize = 7;
/// What a provider works for before it is paid: cumulative, under one deal. It is asked for more often only where one step of a job costs more.
pub const JOBS_UNPAID_MAX: Amount = Amount(10_000_000_000);

const GIGA: u128 = 1_000_000_000;
const GIB: u128 = 1 << 30;

/// What a provider asks for running jobs, in pico-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputePrices {
    /// For each job that was started.
    pub start: u64,
    /// For 10^9 fuel.
    pub gfuel: u64,
    /// For each GiB of the memory limit, for 10^9 fuel: memory that is kept for a job is paid for whether it is used or not.
    pub gib_gfuel: u64,
    /// For each GiB of output files and of what was printed.
    pub output_gib: u64,
}

impl ComputePrices {
    /// Whether each price is within [`PRICE_MAX`].
    pub fn is_bounded(&self) -> bool {
        [self.start, self.gfuel, self.gib_gfuel, self.output_gib].iter().all(|price| *price <= PRICE_MAX)
    }

    /// What a job costs that may use `memory_bytes`, has used `fuel` and has made `output_bytes`. Each part is rounded down once.
    pub fn cost(&self, memory_bytes: u64, fuel: u64, output_bytes: u64) -> Amount {
        let (memory_bytes, fuel) = (u128::from(memory_bytes), u128::from(fuel));
        let run = u128::from(self.gfuel) * fuel / GIGA;
        // 2^40 * 2^64 fits; the memory limit is divided out before fuel comes in, in parts of a MiB.
        let memory = u128::from(self.gib_gfuel) * memory_bytes.div_ceil(1 << 20) / 1024;
        let memory = memory.checked_mul(fuel).map_or(SUPPLY_MAX.0, |memory| memory / GIGA);
        let output = u128::from(self.output_gib) * u128::from(output_bytes) / GIB;
        let sum = u128::from(self.start).saturating_add(run).saturating_add(memory).saturating_add(output);
        Amount(sum).min(SUPPLY_MAX)
    }

    /// What `work` costs at most.
    pub fn cost_max(&self, work: &Work) -> Amount {
        let limits = &work.limits;
        let output = limits.output_bytes.saturating_add(limits.log_bytes.saturating_mul(2));
        self.cost(limits.memory_bytes, limits.fuel, output)
    }
}

/// Bytes named by their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Material {
    /// Their BLAKE3 hash.
    pub root: Root,
    /// How many.
    pub bytes: u64,
}

impl Material {
    /// The material that `bytes` are.
    pub fn of(bytes: &[u8]) -> Self {
        Self { root: Root::of(bytes), bytes: bytes.len() as u64 }
    }
}

/// What a job may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobLimits {
    /// Fuel: about one for each WebAssembly instruction, and what host calls cost.
    pub fuel: u64,
    /// Bytes of all linear memories and tables together.
    pub memory_bytes: u64,
    /// Bytes of all files that the job has written.
    pub output_bytes: u64,
    /// Files and directories that the job has made.
    pub output_files: u32,
    /// Bytes of standard output, and as many of standard error.
    pub log_bytes: u64,
}

impl JobLimits {
    /// The longest that the list of output files can be, encoded: for each a path, its length, a hash and a number.
    fn output_list_bytes(&self) -> u64 {
        (u64::from(self.output_files) + 1).saturating_mul(PATH_MAX_BYTES as u64 + 64)
    }
}

/// What is to be run. All that the result depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The program: a WASI module or component.
    pub module: Material,
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Standard input, if any.
    pub stdin: Option<Material>,
    /// Files that the program finds, by their path, in order of it.
    pub inputs: Vec<(String, Material)>,
    /// Bounds.
    pub limits: JobLimits,
    /// Where the program's random bytes come from.
    pub seed: [u8; 32],
    /// What its clock says at the start, in seconds of unix time.
    pub starts_at_s: u64,
    /// Whether clock and random bytes are the work's own. Nobody can check the result of work whose are the machine's.
    pub is_deterministic: bool,
}

/// Why work cannot be ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// Arguments, environment and names are long.
    #[error(
        "arguments, environment and names of inputs have {0} bytes together, {TEXT_MAX_BYTES} are the most"
    )]
    Text(usize),
    /// Too many inputs.
    #[error("{0} inputs are more than {INPUTS_MAX}; pack them into one file")]
    Inputs(usize),
    /// A path that a program could not be given.
    #[error(
        "'{0}' cannot be the path of an input: names with / between, none of them empty, . or .., and not under out or tmp"
    )]
    Path(String),
    /// Inputs that are not in order of their path, or two at one path.
    #[error("inputs are not in order of their paths, or two have the same: '{0}'")]
    Order(String),
    /// Something that no program can be given.
    #[error(
        "an argument or environment variable holds a zero byte, or a name of a variable is empty or holds ="
    )]
    Variable,
}

impl Work {
    /// Names the work: the same for everybody who runs it.
    pub fn id(&self) -> [u8; 32] {
        blake3::derive_key("spare 2026 work v1", &to_bytes(self))
    }

    /// All bytes that the work needs, the module first.
    pub fn materials(&self) -> impl Iterator<Item = Material> {
        [self.module].into_iter().chain(self.stdin).chain(self.inputs.iter().map(|(_, material)| *material))
    }

    /// Memory that a machine needs to run this, in bytes: the program's own, and all copies of what goes in and comes out, in the worker and beside it.
    pub fn needed_bytes(&self) -> u64 {
        let JobLimits { memory_bytes, output_bytes, log_bytes, .. } = self.limits;
        let inputs = self.materials().map(|material| material.bytes).fold(0, u64::saturating_add);
        [memory_bytes, inputs.saturating_mul(3), output_bytes.saturating_mul(4), log_bytes.saturating_mul(8)]
            .into_iter()
            .chain([self.module.bytes.saturating_mul(8), JOB_OVERHEAD_BYTES])
            .fold(0, u64::saturating_add)
    }

    /// Checks what does not depend on prices or a machine.
    ///
    /// # Errors
    /// [`WorkError`].
    pub fn check(&self) -> Result<(), WorkError> {
        let variables = self.env.iter().flat_map(|(name, value)| [name, value]);
        let texts = self.args.iter().chain(variables).chain(self.inputs.iter().map(|(path, _)| path));
        let text_bytes: usize = texts.clone().map(|text| text.len() + 1).sum();
        if text_bytes > TEXT_MAX_BYTES {
            return Err(WorkError::Text(text_bytes));
        }
        if self.inputs.len() > INPUTS_MAX {
            return Err(WorkError::Inputs(self.inputs.len()));
        }
        if let Some((path, _)) = self.inputs.iter().find(|(path, _)| !is_input_path(path)) {
            return Err(WorkError::Path(path.clone()));
        }
        if let Some(pair) = self.inputs.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(WorkError::Order(pair[1].0.clone()));
        }
        let is_name = |name: &String| !name.is_empty() && !name.contains('=');
        if texts.clone().any(|text| text.contains('\0')) || !self.env.iter().all(|(name, _)| is_name(name)) {
            return Err(WorkError::Variable);
        }
        Ok(())
    }
}

/// Whether a program can find an input at `path`.
fn is_input_path(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name != "." && name != ".." && name.len() <= 255;
    let is_own = path.split('/').next().is_some_and(|first| first == "out" || first == "tmp");
    path.len() <= PATH_MAX_BYTES && path.split('/').all(is_name) && !is_own
}

/// A client's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The first version.
    V1(OrderV1),
}

/// The first version of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderV1 {
    /// The deal that pays.
    pub deal: DealId,
    /// What is to be run: [`Work::id`].
    pub work: [u8; 32],
    /// The nodes that run the work again if the client says that another result is right, in order of key: an odd number of them, or none. More than half
    /// have to come to the same result.
    pub verifiers: Vec<PublicKey>,
    /// What the provider loses of the deal's collateral if they find that its result is wrong.
    pub penalty: Amount,
    /// Unix time in seconds until which the provider may begin.
    pub begin_by_s: u64,
    /// Random, so that the same work can be ordered twice.
    pub salt: [u8; 16],
}

/// Why an order is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Verifiers that are not in order of key, twice the same, or too many.
    #[error("verifiers are named in order of their keys, each once, {VERIFIERS_MAX} at most")]
    Verifiers,
    /// A tie could come about.
    #[error("{0} verifiers could be of two minds, half and half; name an odd number")]
    Even(usize),
    /// A penalty that nobody could find due.
    #[error("a penalty is named, and no verifiers")]
    Penalty,
}

/// Names a job: the hash of its order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub [u8; 32]);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl std::fmt::Debug for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job:{self}")
    }
}

impl Signable for Order {
    const DOMAIN: &'static str = "spare 2026 order v1";
    const MAX_BYTES: usize = 512;
}

impl Order {
    /// The first version's fields.
    pub fn v1(&self) -> &OrderV1 {
        let Self::V1(v1) = self;
        v1
    }

    /// The job that this order makes.
    pub fn job_id(&self) -> JobId {
        JobId(blake3::derive_key("spare 2026 job id v1", &to_bytes(self)))
    }

    /// Checks what does not depend on the work or on who is meant.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn check(&self) -> Result<(), OrderError> {
        let OrderV1 { verifiers, penalty, .. } = self.v1();
        if verifiers.len() > VERIFIERS_MAX || verifiers.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(OrderError::Verifiers);
        }
        if !verifiers.is_empty() && verifiers.len().is_multiple_of(2) {
            return Err(OrderError::Even(verifiers.len()));
        }
        if verifiers.is_empty() && *penalty > Amount::ZERO {
            return Err(OrderError::Penalty);
        }
        Ok(())
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ended {
    /// The program ended by itself, with this code.
    Code(u32),
    /// It used all its fuel.
    OutOfFuel,
    /// It did what WebAssembly does not allow.
    Trapped(String),
    /// It could not be started.
    Refused(String),
}

/// What came out of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The work: [`Work::id`].
    pub work: [u8; 32],
    /// What ran it: the hash of the engine's version and of every setting that changes a result.
    pub configuration: [u8; 32],
    /// How it ended.
    pub ended: Ended,
    /// Fuel used.
    pub fuel: u64,
    /// Most bytes of linear memories and tables at once.
    pub memory_peak_bytes: u64,
    /// What was printed to standard output, as far as it was kept.
    pub stdout: Material,
    /// What was printed to standard error, as far as it was kept.
    pub stderr: Material,
    /// Whether more was printed than was kept.
    pub is_log_cut: bool,
    /// Output files by their path, in order of it: the list of [`Outputs`], encoded.
    pub outputs: Material,
    /// Bytes of all output files.
    pub output_bytes: u64,
}

/// Output files by their path, in order of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs(pub Vec<(String, Material)>);

impl Ran {
    /// The hash that two who ran the same work compare.
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("spare 2026 job result v1", &to_bytes(self))
    }

    /// What this costs under `prices`, for work with `limits`.
    pub fn cost(&self, prices: &ComputePrices, limits: &JobLimits) -> Amount {
        let printed = self.stdout.bytes.saturating_add(self.stderr.bytes);
        prices.cost(limits.memory_bytes, self.fuel, self.output_bytes.saturating_add(printed))
    }

    /// Whether this can have come out of `work`: nothing in it is beyond the limits.
    pub fn is_within(&self, work: &Work) -> bool {
        let limits = &work.limits;
        self.work == work.id()
            && self.fuel <= limits.fuel
            && self.memory_peak_bytes <= limits.memory_bytes
            && self.output_bytes <= limits.output_bytes
            && self.stdout.bytes <= limits.log_bytes
            && self.stderr.bytes <= limits.log_bytes
            && self.outputs.bytes <= limits.output_list_bytes()
            && match &self.ended {
                Ended::Trapped(why) | Ended::Refused(why) => why.len() <= REASON_MAX_BYTES,
                Ended::Code(_) | Ended::OutOfFuel => true,
            }
    }
}

/// What a provider says of a job, signed by its node key. Anybody who has the work can run it again and compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobReceipt {
    /// The first version.
    V1 {
        /// The job.
        job: JobId,
        /// What came out.
        ran: Ran,
        /// Unix time in seconds of its end.
        ended_s: u64,
    },
}

impl Signable for JobReceipt {
    const DOMAIN: &'static str = "spare 2026 job receipt v1";
    const MAX_BYTES: usize = 1024;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningSecret;
    use proptest::prelude::*;
    use spare_proofs::cipher::Secret;

    fn work() -> Work {
        Work {
            module: Material::of(b"module"),
            args: vec!["a".into()],
            env: vec![("NAME".into(), "value".into())],
            stdin: None,
            inputs: vec![("a/b".into(), Material::of(b"b")), ("c".into(), Material::of(b"c"))],
            limits: JobLimits {
                fuel: 1_000_000_000,
                memory_bytes: 1 << 30,
                output_bytes: 1 << 30,
                output_files: 10,
                log_bytes: 0,
            },
            seed: [0; 32],
            starts_at_s: 0,
            is_deterministic: true,
        }
    }

    #[test]
    fn a_job_costs_the_sum_of_its_parts() {
        let prices = ComputePrices { start: 1, gfuel: 10, gib_gfuel: 100, output_gib: 1000 };
        assert_eq!(prices.cost_max(&work()), Amount(1111));
        assert_eq!(prices.cost(1 << 29, 500_000_000, 1 << 29), Amount(1 + 5 + 25 + 500));
        assert_eq!(prices.cost(0, 0, 0), Amount(1));
        let highest =
            ComputePrices { start: PRICE_MAX, gfuel: PRICE_MAX, gib_gfuel: PRICE_MAX, output_gib: PRICE_MAX };
        assert!(highest.is_bounded());
        assert_eq!(highest.cost(u64::MAX, u64::MAX, u64::MAX), SUPPLY_MAX);
    }

    #[test]
    fn work_that_no_program_can_be_given_is_refused() {
        let with = |change: fn(&mut Work)| {
            let mut work = work();
            change(&mut work);
            work.check()
        };
        assert_eq!(with(|_| ()), Ok(()));
        for path in ["", "/a", "a/", "a//b", "a/../b", ".", "out/a", "tmp", "out"] {
            let mut work = work();
            work.inputs = vec![(path.into(), Material::of(b""))];
            assert_eq!(work.check(), Err(WorkError::Path(path.into())));
        }
        assert_eq!(with(|w| w.inputs.swap(0, 1)), Err(WorkError::Order("a/b".into())));
        assert_eq!(with(|w| w.inputs[1].0 = "a/b".into()), Err(WorkError::Order("a/b".into())));
        assert_eq!(with(|w| w.args.push("a\0b".into())), Err(WorkError::Variable));
        assert_eq!(with(|w| w.env[0].0 = "A=B".into()), Err(WorkError::Variable));
        assert!(matches!(with(|w| w.args.push("a".repeat(TEXT_MAX_BYTES))), Err(WorkError::Text(_))));
        let many = |w: &mut Work| {
            w.inputs = (0..=INPUTS_MAX).map(|i| (format!("{i:04}"), Material::of(b""))).collect();
        };
        assert_eq!(with(many), Err(WorkError::Inputs(INPUTS_MAX + 1)));
    }

    #[test]
    fn a_list_of_outputs_is_bounded_by_their_number() {
        let work = work();
        let ran = |bytes| Ran {
            work: work.id(),
            configuration: [0; 32],
            ended: Ended::Code(0),
            fuel: 0,
            memory_peak_bytes: 0,
            stdout: Material::of(b""),
            stderr: Material::of(b""),
            is_log_cut: false,
            outputs: Material { bytes, ..Material::of(b"") },
            output_bytes: 0,
        };
        let longest =
            Outputs(vec![("p".repeat(PATH_MAX_BYTES), Material { bytes: u64::MAX, ..work.module }); 10]);
        assert!(ran(to_bytes(&longest).len() as u64).is_within(&work));
        assert!(!ran(1 << 62).is_within(&work));
        let most = Ran { fuel: work.limits.fuel, ..ran(0) };
        assert!(most.is_within(&work) && !Ran { fuel: most.fuel + 1, ..most }.is_within(&work));
    }

    fn verifiers(count: usize) -> Vec<PublicKey> {
        let key = |i: usize| SigningSecret::from_secret(&Secret::new([i as u8; 32])).public();
        let mut keys: Vec<PublicKey> = (0..count).map(key).collect();
        keys.sort_unstable();
        keys
    }

    fn order(verifiers: Vec<PublicKey>) -> Order {
        let (deal, work, salt) = (DealId([1; 32]), work().id(), [0; 16]);
        Order::V1(OrderV1 { deal, work, verifiers, penalty: SUPPLY_MAX, begin_by_s: u64::MAX, salt })
    }

    #[test]
    fn verifiers_cannot_be_of_two_minds() {
        assert_eq!(order(Vec::new()).check(), Err(OrderError::Penalty));
        for count in 1..=VERIFIERS_MAX {
            let expected = if count % 2 == 0 { Err(OrderError::Even(count)) } else { Ok(()) };
            assert_eq!(order(verifiers(count)).check(), expected);
        }
        assert_eq!(order(verifiers(VERIFIERS_MAX + 2)).check(), Err(OrderError::Verifiers));
        let mut twice = verifiers(3);
        twice[1] = twice[0];
        assert_eq!(order(twice).check(), Err(OrderError::Verifiers));
    }

    #[test]
    fn the_largest_work_and_order_fit_and_each_field_changes_its_name() {
        let mut most = work();
        most.inputs = (0..INPUTS_MAX)
            .map(|i| (format!("{i:04}"), Material { bytes: u64::MAX, ..most.module }))
            .collect();
        let left = TEXT_MAX_BYTES - 7 - 11 - INPUTS_MAX * 5;
        most.args.push("a".repeat(left));
        assert_eq!(most.check(), Ok(()));
        assert!(to_bytes(&most).len() <= WORK_MAX_BYTES);
        let order = order(verifiers(VERIFIERS_MAX));
        assert!(to_bytes(&order).len() <= Order::MAX_BYTES);
        let mut again = order.clone();
        let Order::V1(v1) = &mut again;
        v1.salt[0] = 1;
        assert_ne!(order.job_id(), again.job_id());
        let mut other = work();
        other.seed[0] = 1;
        assert_ne!(work().id(), other.id());
    }

    proptest! {
        #[test]
        fn nobody_pays_more_for_less(prices: [u32; 4], memory: u64, fuel: u64, output: u64, less: [u64; 3]) {
            let prices = ComputePrices { start: prices[0].into(), gfuel: prices[1].into(), gib_gfuel: prices[2].into(), output_gib: prices[3].into() };
            let part = |whole: u64, less: u64| whole - whole.min(less);
            let whole = prices.cost(memory, fuel, output);
            prop_assert!(prices.cost(part(memory, less[0]), part(fuel, less[1]), part(output, less[2])) <= whole);
        }
    }
}
