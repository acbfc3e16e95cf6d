//! Homes behind routers, and a public host, in network namespaces of this machine.
//!
//! ```text
//! home 1 -- router 1 --\
//! home 2 -- router 2 --- internet -- public
//! home 3 -- router 3 --/
//! ```
//!
//! A router masquerades as Linux does: it keeps the port where it can, and lets in only answers to what went out, from the same address and
//! port. Needs root, and the programs `ip` and `nft`.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Address of the public host.
pub const PUBLIC_IP: &str = "203.0.113.2";

/// Namespaces that are taken down at the end.
pub struct Homes {
    prefix: String,
    names: Vec<String>,
    /// What runs on a router, and its settings.
    upnp: Option<(Child, tempfile::TempDir)>,
}

impl Drop for Homes {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.upnp {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.names {
            // Its interfaces, routes and rules go with it.
            let _ = Command::new("ip").args(["netns", "del", &self.full(name)]).status();
        }
    }
}

/// Runs a command that succeeds.
fn ok(command: &[&str]) -> Result<String, String> {
    let run = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let output = run.map_err(|e| format!("{}: {e}", command[0]))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("`{}` failed: {}", command.join(" "), text(&output.stderr)))
    }
}

impl Homes {
    /// Builds `count` homes and the public host. Without `nat` the routers only route.
    ///
    /// # Errors
    /// Why this machine does not let it.
    pub fn build(count: u8, nat: bool) -> Result<Self, String> {
        static BUILT: AtomicUsize = AtomicUsize::new(0);
        let number = BUILT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("spare-{}-{number}", std::process::id());
        let mut homes = Self { prefix, names: Vec::new(), upnp: None };
        homes.add("internet")?;
        homes.run("internet", &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        homes.add("public")?;
        homes.link(("internet", "203.0.113.1/24"), ("public", "203.0.113.2/24"))?;
        homes.run("public", &["ip", "route", "add", "default", "via", "203.0.113.1"])?;
        for home in 1..=count {
            homes.add_home(home, nat)?;
        }
        Ok(homes)
    }

    fn add_home(&mut self, home: u8, nat: bool) -> Result<(), String> {
        let (router, inside) = (format!("router{home}"), Self::home(home));
        self.add(&router)?;
        self.add(&inside)?;
        // Each home has a /24 of its own outside, as shards are kept apart by network.
        let outside = format!("198.51.{home}");
        let wan =
            self.link(("internet", &format!("{outside}.1/24")), (&router, &format!("{outside}.2/24")))?;
        self.link((&router, &format!("192.168.{home}.1/24")), (&inside, &format!("192.168.{home}.2/24")))?;
        self.run(&router, &["ip", "route", "add", "default", "via", &format!("{outside}.1")])?;
        self.run(&router, &["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        self.run(&inside, &["ip", "route", "add", "default", "via", &format!("192.168.{home}.1")])?;
        if !nat {
            let lan = format!("192.168.{home}.0/24");
            self.run("internet", &["ip", "route", "add", &lan, "via", &format!("{outside}.2")])?;
            return Ok(());
        }
        self.rules(
            &router,
            &format!(
                "table inet home {{
                   chain out {{ type nat hook postrouting priority srcnat; oifname {wan} masquerade; }}
                   chain in {{ type filter hook input priority filter; policy drop;
                     ct state established,related accept; iifname != {wan} accept; }}
                   chain opened {{ }}
                   chain forwarded {{ }}
                   chain through {{ type filter hook forward priority filter; policy drop;
                     ct state established,related accept; iifname != {wan} accept; jump opened; }}
                   chain arrive {{ type nat hook prerouting priority dstnat; jump forwarded; }}
                 }}"
            ),
        )
    }

    /// Has the router of a home forward ports to whoever in it asks by UPnP. Needs the program `miniupnpd`, in the version for nftables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn speak_upnp(&mut self, home: u8) -> Result<(), String> {
        let router = self.full(&format!("router{home}"));
        let address = |name: &str| ok(&["ip", "-n", &router, "-o", "address", "show", "to", name]);
        let interface = |name: String| -> Result<String, String> {
            let shown = address(&name)?;
            shown.split_whitespace().nth(1).map(str::to_owned).ok_or_else(|| format!("{name} is nowhere"))
        };
        let outside = interface(format!("198.51.{home}.2"))?;
        let inside = interface(format!("192.168.{home}.1"))?;
        let settings = format!(
            "ext_ifname={outside}\nlistening_ip={inside}\nenable_natpmp=no\nenable_upnp=yes\nsecure_mode=yes\n\
             uuid=11111111-2222-3333-4444-555555555555\nupnp_table_name=home\nupnp_nat_table_name=home\n\
             upnp_forward_chain=opened\nupnp_nat_chain=forwarded\nupnp_nat_postrouting_chain=out\n\
             allow 1024-65535 192.168.{home}.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        );
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let file = dir.path().join("settings");
        std::fs::write(&file, settings).map_err(|e| e.to_string())?;
        let mut daemon = Command::new("ip");
        daemon.args(["netns", "exec", &router, "miniupnpd", "-d", "-P"]);
        daemon.arg(dir.path().join("pid")).arg("-f").arg(file);
        let child = daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.upnp = Some((child.map_err(|e| e.to_string())?, dir));
        Ok(())
    }

    /// Has the internet drop all UDP that is neither from nor to the public host.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn block_between_homes(&self) -> Result<(), String> {
        self.rules(
            "internet",
            &format!(
                "table ip block {{ chain through {{ type filter hook forward priority filter;
                   meta l4proto udp ip saddr != {PUBLIC_IP} ip daddr != {PUBLIC_IP} drop; }}; }}"
            ),
        )
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn home(home: u8) -> String {
        format!("home{home}")
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        ok(&["ip", "netns", "add", &self.full(name)])?;
        self.names.push(name.to_owned());
        self.run(name, &["ip", "link", "set", "lo", "up"]).map(drop)
    }

    /// Joins two namespaces by a cable. Returns the name of the second one's end.
    fn link(&self, a: (&str, &str), b: (&str, &str)) -> Result<String, String> {
        static CABLES: AtomicUsize = AtomicUsize::new(0);
        let number = CABLES.fetch_add(1, Ordering::Relaxed);
        let ends = [format!("a{number}"), format!("b{number}")];
        let (from, to) = (self.full(a.0), self.full(b.0));
        // Made where they belong, so that no name on this machine is taken.
        let made = ["link", "add", &ends[0], "type", "veth", "peer", "name", &ends[1], "netns", &to];
        ok(&[&["ip", "-n", &from], &made[..]].concat())?;
        for ((name, address), end) in [a, b].into_iter().zip(&ends) {
            self.run(name, &["ip", "address", "add", address, "dev", end])?;
            self.run(name, &["ip", "link", "set", end, "up"])?;
        }
        let [_, end] = ends;
        Ok(end)
    }

    fn rules(&self, name: &str, rules: &str) -> Result<(), String> {
        self.run(name, &["nft", rules]).map(drop)
    }

    fn run(&self, name: &str, command: &[&str]) -> Result<String, String> {
        ok(&[&["ip", "netns", "exec", &self.full(name)], command].concat())
    }

    /// The namespace of a home, from 1 on.
    pub fn inside(&self, home: u8) -> String {
        self.full(&Self::home(home))
    }

    /// The namespace of the public host.
    pub fn public(&self) -> String {
        self.full("public")
    }

    /// Bytes that went in and out of the public host, as its network card counts.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn public_bytes(&self) -> u64 {
        let counters = "cat /sys/class/net/b*/statistics/rx_bytes /sys/class/net/b*/statistics/tx_bytes";
        let text = self.run("public", &["sh", "-c", counters]).expect("a namespace has counters");
        text.lines().map(|line| line.trim().parse::<u64>().expect("counters are numbers")).sum()
    }
}
