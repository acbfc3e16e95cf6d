//! `make scale`: a 3 GiB file at 10+20 over 30 providers, with the memory that it takes.

use anyhow::{Context, ensure};
use spare_tests::net::{Net, Node};

const MIB: u64 = 1 << 20;
const CLIENT_MAX_BYTES: u64 = 256 * MIB;
const PROVIDER_MAX_BYTES: u64 = 64 * MIB;

/// Peak resident memory of a node so far, from `/proc`, in bytes.
fn peak_bytes(node: &Node) -> anyhow::Result<u64> {
    let pid = node.pid().context("the node runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel tells the peak")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

fn main() -> anyhow::Result<()> {
    let base = std::env::current_exe()?.parent().context("a program lies in a folder")?.to_owned();
    let net = Net::start_in(tempfile::tempdir_in(base)?, 30, "4GB", &[]);
    let idle = net.providers.iter().map(peak_bytes).collect::<anyhow::Result<Vec<_>>>()?;
    let idle = idle.into_iter().max().unwrap_or(0);
    println!("idle fresh provider, the largest of 30, peak {:>4} MiB resident (at most 64)", idle / MIB);

    let file = net.file("source", 3072 * MIB, 1);
    let path = file.to_str().context("paths are UTF-8")?;
    net.client.ok(&["put", path, "--name", "a", "--code", "10+20"]);
    let after_put = peak_bytes(&net.client)?;
    println!(
        "client after put of 3 GiB at 10+20, peak      {:>4} MiB resident (at most 256)",
        after_put / MIB
    );
    let copy = net.dir.path().join("copy");
    net.client.ok(&["get", "a", "-o", copy.to_str().context("paths are UTF-8")?]);
    let after_get = peak_bytes(&net.client)?;
    println!(
        "client after get, peak                        {:>4} MiB resident (at most 256)",
        after_get / MIB
    );
    let provider = net
        .providers
        .iter()
        .map(peak_bytes)
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter()
        .max()
        .unwrap_or(0);
    println!("busiest provider, peak                        {:>4} MiB resident", provider / MIB);

    let hash = |path: &std::path::Path| -> anyhow::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(path)?)?;
        Ok(hasher.finalize())
    };
    ensure!(hash(&file)? == hash(&copy)?, "the file came back otherwise");
    println!("the file came back byte for byte");
    ensure!(after_get < CLIENT_MAX_BYTES, "the client takes more memory than its bound");
    ensure!(idle < PROVIDER_MAX_BYTES, "an idle provider takes more memory than its bound");
    Ok(())
}
