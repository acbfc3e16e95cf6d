//! Jobs over real processes: ordered, run, paid, checked; providers that fail, and one that signs a wrong result.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;

use serde_json::Value;
use spare::home::Home;
use spare::jobs::{KEY_PREFIX, Over, Record};
use spare::meta::{Batch, Meta, Table};
use spare_market::job::JobReceipt;
use spare_market::signed::Signed;
use spare_tests::jobs::{ECHO, inputs, module, start};
use spare_tests::net::{Net, Node, wait_for};

/// Counts for some seconds, and prints a dot now and then.
const COUNT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) ".")
  (func (export "_start") (local $i i64)
    (i32.store (i32.const 0) (i32.const 100))
    (i32.store (i32.const 4) (i32.const 1))
    (loop $more
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (if (i64.eqz (i64.rem_u (local.get $i) (i64.const 100000000)))
        (then (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
      (br_if $more (i64.lt_u (local.get $i) (i64.const 1000000000))))))"#;

/// A component, as newer toolchains make them.
const COMPONENT: &str = r#"(component
  (core module $m
    (memory (export "memory") 1)
    (data (i32.const 0) "\2a")
    (func (export "run") (result i32) (i32.ne (i32.load8_u (i32.const 0)) (i32.const 42))))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))"#;

const ENDLESS: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn node_key(node: &Node) -> String {
    node.status()["node"].as_str().unwrap().to_owned()
}

/// Waits until a job of the client's is over.
fn over(net: &Net, job: &str) -> Value {
    wait_for("a job to be over", || {
        let state = net.client.ok(&["job", "status", job]);
        matches!(state["state"].as_str(), Some("done" | "failed" | "cancelled")).then_some(state)
    })
}

#[test]
fn a_job_runs_is_paid_for_and_comes_to_the_same_at_each_provider() {
    let mut net = start(3, &["--period-s", "5"], &[]);
    let echo = module(&net, "echo.wasm", ECHO);
    let input = net.dir.path().join("input");
    std::fs::write(&input, "what is said").unwrap();
    let out = net.dir.path().join("out");
    let args = ["job", "run", &echo, "--stdin", text(&input), "--output", text(&out), "--memory", "16MiB"];
    let job = net.client.ok(&[&args[..], &["--check", "100"]].concat());
    assert_eq!((job["state"].as_str(), job["code"].as_u64()), (Some("done"), Some(0)), "{job}");
    assert_eq!(std::fs::read(out.join("copy")).unwrap(), b"what is said");
    assert!(job["checked"].as_str().unwrap().contains("run again here"), "{job}");
    // What `try` says on a machine that knows nothing of the network is what each provider signs.
    let tried = Node::init(net.dir.path().join("elsewhere"), 201, &["--join", &net.ticket]);
    let tried = tried.run(&["job", "try", &echo, "--stdin", text(&input), "--memory", "16MiB"]);
    let tried: Value = serde_json::from_slice(&tried.stdout).unwrap();
    assert_eq!((&job["result"], &job["fuel"]), (&tried["result"], &tried["fuel"]));
    let all = net.client.ok(&[&args[..], &["--copies", "3"]].concat());
    assert!(all["checked"].as_str().unwrap().contains("3 providers came to the same result"), "{all}");
    assert_eq!(all["result"], job["result"]);
    let orders = all["orders"].as_array().unwrap();
    assert!(orders.len() == 3 && orders.iter().all(|order| order["result"] == all["result"]), "{all}");
    let component = module(&net, "component.wasm", COMPONENT);
    let run = net.client.ok(&["job", "run", &component, "--memory", "16MiB", "--copies", "3"]);
    assert_eq!(run["code"].as_u64(), Some(0), "{run}");
    // Anybody can check the receipt, with nothing but the file.
    let receipt = net.dir.path().join("receipt");
    let name = all["job"].as_str().unwrap().to_owned();
    net.client.ok(&["job", "receipt", &name, "--order", "2", "-o", text(&receipt)]);
    let stranger = Node::init(net.dir.path().join("stranger"), 202, &["--join", &net.ticket]);
    let verdict = stranger.ok(&["job", "verify", text(&receipt)]);
    assert_eq!((verdict["right"].as_bool(), &verdict["found"]["result"]), (Some(true), &all["result"]));
    // The client promised to pay what providers counted.
    let cost: f64 =
        [&job, &all, &run].iter().map(|job| job["cost"].as_str().unwrap().parse::<f64>().unwrap()).sum();
    let promised = || {
        let deals = net.client.ok(&["deals"]);
        let deals = deals.as_array().unwrap().clone();
        deals.iter().map(|deal| deal["promised"].as_str().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    assert!(cost > 0.0 && (promised() - cost).abs() < 1e-9, "{cost} and {}", promised());
    // It survives a restart of the client, with what came out.
    net.client.stop();
    net.client.start();
    let again = net.dir.path().join("again");
    net.client.ok(&["job", "output", &name, "--output", text(&again)]);
    assert_eq!(std::fs::read(again.join("copy")).unwrap(), b"what is said");
    net.client.ok(&["job", "rm", &name]);
    assert_eq!(net.client.fails(&["job", "status", &name]).0, "no_such_job");
}

#[test]
fn a_job_goes_on_when_either_side_is_killed_and_stops_when_told() {
    let mut net = start(2, &["--period-s", "5"], &[]);
    let count = module(&net, "count.wasm", COUNT);
    let first = node_key(&net.providers[1]);
    let job = net.client.ok(&["job", "submit", &count, "--memory", "16MiB", "--provider", &first]);
    let name = job["job"].as_str().unwrap().to_owned();
    wait_for("the job to run", || {
        let work = net.providers[1].ok(&["job", "work"]);
        (work[0]["fuel"].as_u64() > Some(0)).then_some(())
    });
    net.providers[1].kill();
    net.client.kill();
    net.providers[1].start();
    net.client.start();
    let done = over(&net, &name);
    assert_eq!((done["state"].as_str(), done["code"].as_u64()), (Some("done"), Some(0)), "{done}");
    assert_eq!(done["stdout_bytes"].as_u64(), Some(10), "printed once, however often it began");
    // A provider that is gone for good: another one runs it.
    let endless = module(&net, "endless.wasm", ENDLESS);
    let submit = ["job", "submit", &endless, "--memory", "16MiB", "--fuel", "9T", "--provider", &first];
    let job = net.client.ok(&submit);
    let name = job["job"].as_str().unwrap().to_owned();
    wait_for("the job to run", || {
        let status = net.client.ok(&["job", "status", &name]);
        (status["state"].as_str() == Some("running")).then_some(())
    });
    assert_eq!(net.client.fails(&["job", "rm", &name]).0, "not_over");
    let stopped = net.client.ok(&["job", "cancel", &name]);
    assert_eq!(stopped["state"].as_str(), Some("cancelled"), "{stopped}");
    wait_for("the provider to have a free place", || {
        let work = net.providers[1].ok(&["job", "work"]);
        work.as_array().unwrap().is_empty().then_some(())
    });
}

#[test]
fn what_keeps_a_job_from_running_is_said() {
    let net = start(2, &[], &[]);
    let echo = module(&net, "echo.wasm", ECHO);
    let why = |args: &[&str]| {
        let out = net.client.ok(&[&["job", "offers", &echo], args].concat());
        out[0]["why"].as_str().unwrap().to_owned()
    };
    assert!(why(&["--memory", "100GiB"]).contains("--memory"));
    assert!(why(&["--output-max", "100GiB"]).contains("--output-max"));
    assert!(why(&["--max-cost", "0.0000001"]).contains("--max-cost"));
    let run = |args: &[&str]| {
        let output = net.client.run(&[&["job", "run", &echo, "--memory", "16MiB"], args].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let dear = run(&["--max-cost", "0.0000001"]);
    assert_eq!(dear["state"].as_str(), Some("failed"));
    assert!(dear["detail"].as_str().unwrap().contains("see --max-cost"), "{dear}");
    let secured = run(&["--secured", "--check", "1"]);
    let detail = secured["detail"].as_str().unwrap();
    assert!(detail.contains("it pledges 0 credits") && detail.contains("no verifiers"), "{secured}");
    let (code, message) = net.client.fails(&["job", "run", &echo, "--free", "--check", "5"]);
    assert_eq!(code, "bad_job", "{message}");
    let (code, _) = net.client.fails(&["job", "run", &echo, "--copies", "3", "--agree", "1"]);
    assert_eq!(code, "bad_job");
    let no_program = net.dir.path().join("no program");
    std::fs::write(&no_program, "\0asm, and nothing else").unwrap();
    let job = net.client.run(&["job", "run", text(&no_program), "--memory", "16MiB"]);
    let job: Value = serde_json::from_slice(&job.stdout).unwrap();
    assert!(job["ended"].as_str().unwrap().contains("was not started"), "{job}");
    assert_eq!(job["orders"].as_array().unwrap().len(), 1, "no other provider would do better: {job}");
    let idle = net.providers[0].status()["compute"].clone();
    assert!(idle["why_no_job"].as_array().is_some_and(|why| !why.is_empty()), "{idle}");
}

#[test]
fn each_input_of_a_folder_is_a_job_and_what_is_done_is_not_done_again() {
    let mut net = start(3, &[], &[]);
    let echo = module(&net, "echo.wasm", ECHO);
    let inputs = inputs(&net, 30);
    let out = net.dir.path().join("out");
    let args = ["job", "map", &echo, "--inputs", &inputs, "--output", text(&out), "--memory", "16MiB"];
    let first = net.client.ok(&args);
    assert_eq!((first["done"].as_u64(), first["done_before"].as_u64()), (Some(30), Some(0)), "{first}");
    for i in 0..30 {
        assert_eq!(
            std::fs::read(out.join(format!("{i:05}/stdout"))).unwrap(),
            format!("input {i}").as_bytes()
        );
        assert_eq!(std::fs::read(out.join(format!("{i:05}/copy"))).unwrap(), format!("input {i}").as_bytes());
    }
    std::fs::write(Path::new(&inputs).join("00007"), "another").unwrap();
    net.providers[2].kill();
    let second = net.client.ok(&args);
    assert_eq!((second["done"].as_u64(), second["done_before"].as_u64()), (Some(30), Some(29)), "{second}");
    assert_eq!(std::fs::read(out.join("00007/stdout")).unwrap(), b"another");
}

/// Has a provider that is stopped say that its last job burned more fuel than it did, and sign that.
fn forge(home: &Path) {
    let (identity, _) = Home::new(home.to_owned()).identity_and_genesis().unwrap();
    let meta = Meta::open(&home.join("meta")).unwrap();
    let mut forged = 0;
    for (key, record) in meta.all::<Record>(Table::Jobs, KEY_PREFIX).unwrap() {
        let Record::V1 { client, order, work, taken_s, over } = record;
        let Some(Over::Ended { receipt, at_s }) = over else { continue };
        let receipt = receipt.check::<JobReceipt>(identity.network).unwrap();
        let JobReceipt::V1 { job, mut ran, ended_s } = receipt.value().clone();
        ran.fuel += 1_000_000;
        let receipt = JobReceipt::V1 { job, ran, ended_s };
        let receipt = Signed::new(receipt, identity.network, &identity.node_key()).raw().clone();
        let over = Some(Over::Ended { receipt, at_s });
        let record = Record::V1 { client, order, work, taken_s, over };
        meta.commit(Batch::default().put(Table::Jobs, &[KEY_PREFIX, &key].concat(), &record)).unwrap();
        forged += 1;
    }
    assert!(forged > 0, "there was a receipt to forge");
    meta.close().unwrap();
}

/// Orders a job, and has provider `cheat` forge its receipt before the client sees it. Returns the job's name.
fn order_and_forge(net: &mut Net, cheat: usize, copies: usize, args: &[&str]) -> String {
    let count = module(net, "count.wasm", COUNT);
    let submit = [&["job", "submit", &count, "--memory", "16MiB"], args].concat();
    let job = net.client.ok(&submit);
    let name = job["job"].as_str().unwrap().to_owned();
    wait_for("all orders to run", || {
        let status = net.client.ok(&["job", "status", &name]);
        let running = net.providers.iter().filter(|p| {
            let work = p.ok(&["job", "work"]);
            work[0]["fuel"].as_u64() > Some(0)
        });
        assert_ne!(status["state"].as_str(), Some("failed"), "{status}");
        (running.count() >= copies).then_some(())
    });
    net.client.kill();
    wait_for("the provider to be done", || {
        (net.providers[cheat].status()["compute"]["ended"].as_u64() > Some(0)).then_some(())
    });
    net.providers[cheat].stop();
    forge(&net.providers[cheat].home);
    net.providers[cheat].start();
    net.client.start();
    name
}

/// Checks that provider `cheat` is held to it.
fn is_held_to_it(net: &Net, job: &Value, cheat: usize) {
    let key = node_key(&net.providers[cheat]);
    let wrong = job["orders"].as_array().unwrap().iter().filter(|order| order["wrong"] == true);
    let wrong: Vec<&str> = wrong.map(|order| order["provider"].as_str().unwrap()).collect();
    assert_eq!(wrong, [key.as_str()], "{job}");
    let audits = net.client.ok(&["audit"]);
    let held = audits.as_array().unwrap().iter().find(|audit| audit["node"] == key.as_str()).unwrap().clone();
    assert_eq!(held["record_percent"].as_u64(), Some(0), "{held}");
}

#[test]
fn a_wrong_result_is_caught_by_running_again_and_the_provider_pays_on_the_ledger() {
    let mut net = start(2, &["--period-s", "2"], &["--set", "provide.collateral=0.02"]);
    net.fund_node(&net.providers[1], "1");
    let cheat = node_key(&net.providers[1]);
    let args = ["--check", "100", "--provider", &cheat];
    let name = order_and_forge(&mut net, 1, 1, &args);
    let job = over(&net, &name);
    assert_eq!(job["state"].as_str(), Some("done"), "{job}");
    is_held_to_it(&net, &job, 1);
    // The result is right all the same: it is the client's own.
    assert!(job["checked"].as_str().unwrap().contains("run again here"), "{job}");
    assert_ne!(job["result"], job["orders"][0]["result"]);
    let started = std::time::Instant::now();
    let decided = wait_for("verifiers to decide", || {
        let status = net.client.ok(&["job", "status", &name]);
        let dispute = status["orders"][0]["dispute"].as_str().unwrap_or_default().to_owned();
        dispute.contains("the provider lost").then_some(dispute)
    });
    eprintln!("decided after {:?}: {decided}", started.elapsed());
    // Anybody finds the same with the receipt alone.
    let receipt = net.dir.path().join("receipt");
    net.client.ok(&["job", "receipt", &name, "-o", text(&receipt)]);
    let stranger = Node::init(net.dir.path().join("stranger"), 202, &["--join", &net.ticket]);
    let verdict = stranger.run(&["job", "verify", text(&receipt)]);
    assert_eq!(verdict.status.code(), Some(1));
    let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
    assert_eq!((verdict["right"].as_bool(), &verdict["found"]["result"]), (Some(false), &job["result"]));
}

#[test]
fn a_wrong_result_is_caught_by_another_provider() {
    let mut net = start(3, &[], &[]);
    // Any provider may run it first; the one that does cheats.
    let count_wasm = module(&net, "count.wasm", COUNT);
    let submit =
        ["job", "submit", &count_wasm, "--memory", "16MiB", "--check", "100", "--check-by", "provider"];
    let job = net.client.ok(&submit);
    let name = job["job"].as_str().unwrap().to_owned();
    let first = wait_for("a provider to run it", || {
        net.providers.iter().position(|p| p.ok(&["job", "work"])[0]["fuel"].as_u64() > Some(0))
    });
    net.client.kill();
    wait_for("the provider to be done", || {
        (net.providers[first].status()["compute"]["ended"].as_u64() > Some(0)).then_some(())
    });
    net.providers[first].stop();
    forge(&net.providers[first].home);
    net.providers[first].start();
    net.client.start();
    let job = over(&net, &name);
    assert_eq!((job["state"].as_str(), job["orders"].as_array().unwrap().len()), (Some("done"), 2), "{job}");
    is_held_to_it(&net, &job, first);
}

#[test]
fn a_wrong_result_is_caught_among_copies() {
    let mut net = start(3, &[], &[]);
    let name = order_and_forge(&mut net, 1, 3, &["--copies", "3"]);
    let job = over(&net, &name);
    assert_eq!(job["state"].as_str(), Some("done"), "{job}");
    is_held_to_it(&net, &job, 1);
    let right: Vec<&Value> =
        job["orders"].as_array().unwrap().iter().filter(|order| order["wrong"] == false).collect();
    assert!(right.len() == 2 && right.iter().all(|order| order["result"] == job["result"]), "{job}");
}

/// How many honest jobs are checked.
fn honest_jobs() -> usize {
    std::env::var("SPARE_HONEST_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

#[test]
fn honest_providers_are_not_accused() {
    let net = start(3, &[], &[]);
    let echo = module(&net, "echo.wasm", ECHO);
    let (count, out) = (honest_jobs(), net.dir.path().join("out"));
    let inputs = inputs(&net, count);
    // One half is checked by running again here, the other by three copies each.
    for (part, checks) in [("here", ["--check", "100"]), ("copies", ["--copies", "3"])] {
        let out = out.join(part);
        let map = ["job", "map", &echo, "--inputs", &inputs, "--output", text(&out), "--memory", "16MiB"];
        let mapped = net.client.ok(&[&map[..], &checks].concat());
        assert_eq!(mapped["done"].as_u64(), Some(count as u64), "{mapped}");
        eprintln!("{count} jobs, {checks:?}: {mapped}");
    }
    assert_eq!(net.client.ok(&["audit"]).as_array().unwrap().len(), 0);
    assert!(!net.client.log().contains("a wrong result"), "{}", net.client.log());
}

const LOOP_THROUGH_HOST: &str = r#"(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (loop (drop (call $random (i32.const 0) (i32.const 1))) (br 0))))"#;

const MEMORY_BOMB: &str = r#"(module (memory (export "memory") 1)
  (func (export "_start") (loop (if (i32.eq (memory.grow (i32.const 256)) (i32.const -1)) (then unreachable)) (br 0))))"#;

const STACK_BOMB: &str =
    r#"(module (memory (export "memory") 1) (func $f (call $f)) (func (export "_start") (call $f)))"#;

const SLEEP: &str = r#"(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (loop (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200))) (br 0))))"#;

const FLOOD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1000))
    (i32.store (i32.const 4) (i32.const 65536))
    (loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))))"#;

#[test]
fn hostile_programs_end_by_name_and_others_are_served_meanwhile() {
    let net = start(2, &[], &[]);
    let first = node_key(&net.providers[1]);
    let submit = |name: &str, program: &str| {
        let module = module(&net, name, program);
        let args = ["job", "submit", &module, "--memory", "16MiB", "--fuel", "2G", "--provider", &first];
        net.client.ok(&args)["job"].as_str().unwrap().to_owned()
    };
    let hostile = [
        ("endless loop", ENDLESS, "used all its fuel"),
        ("endless loop through the host", LOOP_THROUGH_HOST, "used all its fuel"),
        ("memory bomb", MEMORY_BOMB, "trapped"),
        ("stack overflow", STACK_BOMB, "trapped"),
        ("sleep", SLEEP, "used all its fuel"),
        ("output flood", FLOOD, "used all its fuel"),
        ("no program", "", "was not started"),
    ];
    let jobs: Vec<(&str, &str, String)> = hostile
        .iter()
        .map(|(name, program, end)| {
            let program = if program.is_empty() { "(module)" } else { program };
            (*name, *end, submit(&format!("{name}.wasm"), program))
        })
        .collect();
    // Somebody else's job at the same provider, meanwhile.
    let echo = module(&net, "echo.wasm", ECHO);
    let honest =
        net.client.ok(&["job", "run", &echo, "--memory", "16MiB", "--provider", &first, "--check", "100"]);
    assert_eq!(honest["code"].as_u64(), Some(0), "{honest}");
    for (name, end, job) in jobs {
        let job = over(&net, &job);
        let ended = job["ended"].as_str().unwrap_or_else(|| panic!("{name}: {job}"));
        assert!(ended.contains(end), "{name}: {ended}");
    }
    let status = net.providers[1].status();
    assert_eq!(status["compute"]["failed"].as_u64(), Some(0), "{status}");
}
