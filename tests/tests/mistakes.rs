//! What users get wrong, and what machines run out of: a clear error each time, and nothing lost.

use std::process::Command;

use serde_json::Value;
use spare_tests::net::{Net, Node, program, wait_for};

#[test]
fn every_mistake_has_its_own_words() {
    let net = Net::start(3);
    let client = &net.client;
    let file = net.file("source", 1000, 1);
    let file = file.to_str().unwrap();
    let says = |args: &[&str], words: &str| {
        let (code, message) = client.fails(args);
        assert!(message.contains(words), "spare {args:?}: {message}");
        code
    };
    says(&["put", "/nonexistent/file"], "cannot read /nonexistent/file");
    says(&["put", "/tmp"], "is a folder; pack it first");
    says(&["put", "-"], "--name");
    // A file that opens and cannot be read.
    says(&["put", "/proc/self/mem", "--code", "2+1"], "cannot read /proc/self/mem to its end");
    assert_eq!(says(&["put", file, "--name", "a\nb"], "cannot be a blob's name"), "bad_name");
    assert_eq!(says(&["put", file, "--name", ".."], "cannot be a blob's name"), "bad_name");
    assert_eq!(says(&["put", file, "--name", &"x".repeat(1025)], "cannot be a blob's name"), "bad_name");
    let needs_four = "4 providers in distinct failure domains are needed, 3 were found";
    assert_eq!(says(&["put", file, "--code", "2+2"], needs_four), "too_few_providers");
    assert_eq!(
        says(&["get", "nothing"], "there is no blob named 'nothing'; `spare ls` lists them"),
        "no_such_blob"
    );
    client.ok(&["put", file, "--name", "a", "--code", "2+1"]);
    let target = net.dir.path().join("there");
    std::fs::write(&target, "mine").unwrap();
    says(&["get", "a", "-o", target.to_str().unwrap()], "exists; add --force");
    assert_eq!(std::fs::read(&target).unwrap(), b"mine");
    says(&["get", "a", "-o", "/tmp"], "is a folder");
    says(&["init"], "there already is a node");
    assert_eq!(client.run(&["put", file, "--code", "4+0"]).status.code(), Some(2), "used wrongly");
    assert_eq!(client.run(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(client.run(&["put", "-"]).status.code(), Some(2));
    assert_eq!(client.run(&["put", file, "--name", ""]).status.code(), Some(2));
    assert_eq!(client.run(&["put", "/nonexistent/file"]).status.code(), Some(1));
}

#[test]
fn a_node_that_is_stopped_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path().join("node"), 1, &["--provide", "1GB"]);
    for round in 0..12 {
        node.start();
        assert_eq!(node.stop(), Some(0), "round {round}: {}", node.log());
    }
}

#[test]
fn what_cannot_fit_is_refused_and_an_unfinished_put_can_be_given_up() {
    let mut net = Net::start_with(3, "300MB", &[]);
    let file = net.file("source", 400 << 20, 1);
    let path = file.to_str().unwrap();
    assert_eq!(net.client.fails(&["put", path, "--name", "a", "--code", "1+2"]).0, "no_room");
    assert!(net.client.status()["unfinished_puts"].as_array().unwrap().is_empty(), "nothing was begun");
    let shards = |net: &Net| (0..3).map(|i| net.shard_files(i).len()).sum::<usize>();
    assert_eq!(shards(&net), 0);
    let mut putting = net.client.command(&["put", path, "--name", "a", "--code", "2+1"]).spawn().unwrap();
    wait_for("some shards to be placed", || (shards(&net) > 2 * 3).then_some(()));
    net.client.kill();
    assert!(!putting.wait().unwrap().success());
    net.client.start();
    assert_eq!(net.client.status()["unfinished_puts"], serde_json::json!(["a"]));
    net.wait_for_providers(3);
    net.client.ok(&["rm", "a"]);
    // Shards under way when the node was killed may have been accepted without its knowing: of two segments at most.
    wait_for("what was placed to be deleted", || (shards(&net) <= 2 * 3).then_some(()));
    assert!(net.client.status()["unfinished_puts"].as_array().unwrap().is_empty());
    assert_eq!(net.client.fails(&["rm", "a"]).0, "no_such_blob");
}

#[test]
fn a_provider_that_offers_nothing_more_goes_on_serving_and_a_lost_identity_is_not_papered_over() {
    let mut net = Net::start(3);
    let file = net.file("source", 1 << 20, 1);
    net.client.ok(&["put", file.to_str().unwrap(), "--name", "a", "--code", "2+1"]);
    for provider in &mut net.providers {
        provider.stop();
        let config = provider.home.join("config.toml");
        let text = std::fs::read_to_string(&config).unwrap().replace("10GB", "0B");
        std::fs::write(&config, text).unwrap();
        provider.start();
    }
    assert!(net.read("a") == std::fs::read(&file).unwrap());
    // By their asks, or by their word when it comes to it.
    let refused = net.client.fails(&["put", file.to_str().unwrap(), "--name", "b", "--code", "2+1"]).0;
    assert!(["no_room", "too_few_providers"].contains(&refused.as_str()), "{refused}");

    let provider = &mut net.providers[0];
    provider.stop();
    std::fs::remove_file(provider.home.join("identity.toml")).unwrap();
    let seed = provider.home.join("seed.txt");
    let again = provider.fails(&["init", "--seed-file", seed.to_str().unwrap()]);
    assert!(again.1.contains("Put that file back"), "{}", again.1);
    assert!(std::fs::read_to_string(provider.home.join("config.toml")).unwrap().contains("0B"), "left alone");
}

#[test]
fn a_wrong_token_or_route_is_refused_and_the_description_is_open() {
    let net = Net::start(1);
    let (url, token) = net.client.api();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let code = async |request: reqwest::RequestBuilder| {
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            let body: Value = response.json().await.unwrap();
            (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
        };
        let unauthorized = (401, "unauthorized".to_owned());
        for path in [
            "status",
            "doctor",
            "blobs",
            "blobs/a",
            "asks",
            "transfers",
            "stat/a",
            "balance",
            "market",
            "deals",
        ] {
            assert_eq!(code(http.get(format!("{url}/{path}"))).await, unauthorized, "{path} without a token");
            assert_eq!(
                code(http.get(format!("{url}/{path}")).bearer_auth("wrong")).await,
                unauthorized,
                "{path}"
            );
        }
        assert_eq!(code(http.put(format!("{url}/blobs/a")).bearer_auth("").body("x")).await, unauthorized);
        let with_token = |path: &str| http.put(format!("{url}/{path}")).bearer_auth(&token).body("x");
        assert_eq!(code(with_token("no")).await, (404, "no_such_route".into()));
        assert_eq!(code(with_token("blobs/a?code=9")).await, (400, "bad_code".into()));
        let document: Value =
            http.get(format!("{url}/openapi.json")).send().await.unwrap().json().await.unwrap();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        let routes = [
            "asks",
            "audits",
            "balance",
            "blobs",
            "blobs/{name}",
            "challenges/{deal}",
            "deals",
            "deals/{deal}",
            "doctor",
            "evidence/{name}",
            "jobs",
            "jobs/materials/{root}",
            "jobs/missing",
            "jobs/offers",
            "jobs/{job}",
            "jobs/{job}/cancel",
            "jobs/{job}/log/{stream}",
            "jobs/{job}/outputs",
            "jobs/{job}/receipt",
            "market",
            "market/blocks",
            "market/fund",
            "quote",
            "recover",
            "stat/{name}",
            "status",
            "transfers",
            "withdraw",
            "work",
        ];
        assert_eq!(paths, routes.map(|route| format!("/v1/{route}")).iter().collect::<Vec<_>>());
    });
    std::fs::write(net.client.home.join("api.token"), "wrong").unwrap();
    assert_eq!(net.client.fails(&["ls"]).0, "unauthorized");
}

#[test]
fn a_node_that_its_own_network_reaches_is_not_called_unreachable() {
    let net = Net::start(2);
    for node in net.providers.iter().chain([&net.client]) {
        wait_for("both ports to be tested", || {
            let status = node.status();
            let ports = status["reach"].as_array()?;
            ports.iter().all(|port| port["how"] == "local").then_some(())
        });
        let checks = node.run(&["doctor"]);
        let checks: Value = serde_json::from_slice(&checks.stdout).unwrap();
        for name in ["libp2p port", "direct port", "peers", "market", "clock", "folder"] {
            let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
            assert_eq!(check["level"], "ok", "{check}");
        }
    }
}

#[test]
fn a_folder_belongs_to_one_node_and_a_node_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Command::new(program()).args(["--home", "/nonexistent", "ls"]).output().unwrap();
    assert!(String::from_utf8_lossy(&missing.stderr).contains("run `spare init` first"));
    let mut node = Node::init(dir.path().join("node"), 1, &[]);
    let (code, message) = node.fails(&["ls"]);
    assert_eq!(code, "no_node");
    assert!(message.contains("start it with `spare serve`"), "{message}");
    let doctor = node.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "no node runs, which needs doing something about");
    let checks: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!((&checks[0]["name"], &checks[0]["level"]), (&"node".into(), &"problem".into()));
    assert!(checks[0]["advice"].as_str().unwrap().contains("spare serve"), "{checks}");
    assert!(checks.as_array().unwrap().iter().any(|check| check["name"] == "open files"), "{checks}");
    node.start();
    let (_, message) = node.fails(&["serve"]);
    assert!(message.contains("another `spare serve` is running"), "{message}");
    assert!(node.run(&["status"]).status.success(), "the first one goes on");
    node.kill();
    node.start();
}

#[test]
fn settings_seeds_and_tickets_are_checked_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let init = |args: &[&str]| {
        let output =
            Command::new(program()).arg("--home").arg(&home).arg("init").args(args).output().unwrap();
        assert!(!output.status.success(), "init {args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(init(&["--join", "spare1nonsense"]).contains("not a ticket"));
    assert!(init(&["--provide", "much"]).contains("not a size"));
    assert!(init(&["--set", "node.colour=red"]).contains("'node.colour', which is not a setting"));
    assert!(init(&["--set", "client.code=1"]).contains("not a code"));
    let words = dir.path().join("words");
    std::fs::write(&words, "abandon ".repeat(24)).unwrap();
    assert!(init(&["--seed-file", words.to_str().unwrap()]).contains("not a seed"));
    assert!(init(&["--seed-file", "/nonexistent"]).contains("cannot read the seed"));
    assert!(!home.exists());

    let node = Node::init(home, 1, &[]);
    std::fs::write(node.home.join("config.toml"), "[node]\nlisten_pi = \"::1\"\n").unwrap();
    assert!(node.fails(&["serve"]).1.contains("'node.listen_pi', which is not a setting"));
    std::fs::write(node.home.join("config.toml"), "[provide]\nsize = \"7GB\"\n").unwrap();
    let shown =
        node.command(&["config", "show", "--origin"]).env("SPARE_NODE_OPERATOR", "ann").output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["node.operator"]["origin"], "$SPARE_NODE_OPERATOR");
    assert!(shown["provide.size"]["origin"].as_str().unwrap().ends_with("config.toml"));
}

#[test]
fn a_full_disk_refuses_further_shards_and_keeps_those_it_has() {
    let mut net = Net::start(2);
    // A provider on a disk of 40 MB that offers 10 GB, in a mount namespace of its own.
    let mut small =
        Node::init(net.dir.path().join("small"), 3, &["--provide", "10GB", "--join", &net.ticket]);
    let volume = small.home.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mount = format!("mount -t tmpfs -o size=40m tmpfs '{}'", volume.display());
    let serve = format!("exec '{}' --home '{}' serve", program().display(), small.home.display());
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &format!("{mount} && {serve}")]);
    small.start_by(command);
    net.providers.push(small);
    net.wait_for_providers(3);
    let fits = net.file("fits", 20 << 20, 1);
    net.client.ok(&["put", fits.to_str().unwrap(), "--name", "fits", "--code", "2+1"]);
    let large = net.file("large", 200 << 20, 2);
    let (code, message) =
        net.client.fails(&["put", large.to_str().unwrap(), "--name", "large", "--code", "2+1"]);
    assert_eq!(code, "too_few_providers");
    assert!(message.contains("no room") || message.contains("without room"), "{message}");
    assert!(net.read("fits") == std::fs::read(&fits).unwrap());
    let free = net.providers[2].status()["provider"]["free_bytes"].as_u64().unwrap();
    assert!(free < 40 << 20, "{free} bytes are said to be free");
}

#[test]
fn the_demo_holds_and_fails_when_one_provider_too_many_is_killed() {
    let demo = |kill: &str| {
        let output = Command::new(program()).args(["--json", "demo", "--kill", kill]).output().unwrap();
        let mut documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let report = documents.next().unwrap().unwrap();
        let error = documents.next().map(|d| d.unwrap()["error"]["message"].to_string()).unwrap_or_default();
        (output.status.success(), report, error)
    };
    let (success, report, error) = demo("7");
    assert!(success, "{error}");
    assert_eq!(report["held"], true);
    assert_eq!(report["steps"].as_array().unwrap().len(), 13);
    let (success, report, error) = demo("8");
    assert!(!success);
    assert_eq!(report["held"], false);
    assert!(error.contains("only 3 of the 4 shards needed could be fetched"), "{error}");
}
