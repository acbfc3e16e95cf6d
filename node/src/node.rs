//! A running node: all parts put together, and the background work between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use spare_market::ask::{ADDRESS_MAX_BYTES, ADDRESSES_MAX, Ask, AskV1};
use spare_market::genesis::Genesis;
use spare_market::grant::Authority;
use spare_market::job::{ComputePrices, VERIFIERS_MAX};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::Signed;
use spare_market::voucher::AHEAD_MAX;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::answer::Answerer;
use crate::asks::AskBook;
use crate::capacity::Capacity;
use crate::catalog::Catalog;
use crate::chain::Chain;
use crate::challenge::{Budget, Challenger};
use crate::client::Client;
use crate::config::Config;
use crate::deals::Deals;
use crate::discover::{Addresses, Discovery, Setup, ip_of, quic_addr};
use crate::earn::{Earner, Offer};
use crate::frames::Service;
use crate::home::{Home, HomeLock, Identity, Ticket};
use crate::index_log::IndexLogs;
use crate::job::{OpenWorkshop, Orders};
use crate::jobs::Jobs;
use crate::judge::Judge;
use crate::market::{Follower, Market, Wallet};
use crate::materials::Materials;
use crate::meta::{Batch, Meta, Table};
use crate::peers::{Credentials, Peers};
use crate::reach::{How, Reach, is_private};
use crate::scrub::Scrub;
use crate::shards::Volume;
use crate::standings::Standings;
use crate::transport::{Direct, SendHalf, Traffic, Wire, node_key, peer_id};
use crate::unix_now_s;
use crate::work::Workshop;

/// How often a provider repeats its ask.
const ASK_INTERVAL: Duration = Duration::from_secs(15);
/// How long an ask holds, in seconds.
const ASK_LIFE_S: u64 = 600;
/// Most providers named in a ticket, beside this node.
const TICKET_PROVIDERS_MAX: usize = 12;
/// How often index copies are brought up to date and garbage is collected.
const TIDY_INTERVAL: Duration = Duration::from_secs(15);

/// Most bytes of compiled programs that are kept, of all clients.
const COMPILED_MAX_BYTES: u64 = 4 << 30;

const SETTINGS_KEY: &[u8] = b"settings of the last run";

/// A running node.
pub struct Node {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Its folder.
    pub home: Home,
    /// Its settings.
    pub config: Config,
    /// The client's side.
    pub client: Arc<Client>,
    /// The ledger.
    pub market: Arc<Market>,
    /// Fetches what the ledger here lacks.
    pub follower: Arc<Follower>,
    /// Signs this node's transactions.
    pub wallet: Arc<Wallet>,
    /// What the market is.
    pub genesis: Genesis,
    /// Asks about deals of others.
    pub challenger: Arc<Challenger>,
    /// Deals of which it is the provider, if it offers any.
    pub earner: Option<Arc<Earner>>,
    /// Jobs of others that it runs, if it does.
    pub jobs: Option<Arc<Jobs>>,
    /// What it runs them on.
    pub capacity: Option<Arc<Capacity>>,
    /// Jobs of its own.
    pub orders: Arc<Orders>,
    /// Reads stored shards again to find rot, if there are any.
    pub scrub: Option<Arc<Scrub>>,
    /// Bytes over the wire.
    pub traffic: Arc<Traffic>,
    /// Who is connected and where it listens.
    pub addresses: Arc<Addresses>,
    /// Whether others can reach it.
    pub reach: Arc<Reach>,
    /// When it started.
    pub started: Instant,
    /// What of its own files needs attention.
    pub file_alerts: Mutex<Vec<String>>,
    /// Direct transfers.
    pub direct: Arc<Direct>,
    meta: Arc<Meta>,
    node_key: SigningSecret,
    book: Arc<AskBook>,
    discovery: Discovery,
    _lock: HomeLock,
}

/// Raises the soft limit on open files to the hard one: each peer and each shard under way takes one.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}

impl Node {
    /// Starts everything but the HTTP API.
    ///
    /// # Errors
    /// When the folder is taken, a port is taken, or a file cannot be used.
    pub async fn start(home: &Home, config: Config) -> anyhow::Result<Arc<Self>> {
        spare_proofs::erasure::check_processor()?;
        raise_file_limit();
        let (identity, genesis) = home.identity_and_genesis()?;
        let identity = Arc::new(identity);
        let lock = home.lock()?;
        let meta = Arc::new(Meta::open(&home.file("meta"))?);
        let book = Arc::new(AskBook::open(identity.network, meta.clone(), unix_now_s())?);
        let logs = Arc::new(IndexLogs::new(meta.clone(), identity.account, config.provide.size.0));
        let volume = open_volume(home, &config, &meta)?;
        let chain = Arc::new(Chain::open(meta.clone(), genesis.clone())?);
        let market = Arc::new(Market::start(chain.clone(), &genesis, &identity.node_secret));
        let traffic = Arc::new(Traffic::default());

        let direct_addr = SocketAddr::new(config.node.listen_ip, config.node.direct_port);
        let direct =
            Direct::bind(direct_addr, identity.libp2p_keypair(), traffic.clone()).with_context(|| {
                format!("cannot listen on UDP {direct_addr}; set node.direct_port to another port, or 0")
            })?;
        let direct = Arc::new(direct);
        let bootstrap = config.network.peers.iter().map(|p| p.parse()).collect::<Result<Vec<Multiaddr>, _>>();
        let bootstrap = bootstrap.context("a peer in network.peers is not a multiaddr")?;
        let direct_port = direct.local_addr().context("the direct port is bound")?.port();
        let reach = Arc::new(Reach::new(config.node.libp2p_port, direct_port));
        let discovery = crate::discover::start(Setup {
            keypair: identity.libp2p_keypair(),
            network: identity.network,
            listen: SocketAddr::new(config.node.listen_ip, config.node.libp2p_port),
            bootstrap,
            book: book.clone(),
            reach: reach.clone(),
            upnp_direct_port: config.node.upnp.then_some(direct_port),
            relay: config.node.relay,
            is_looked_for: volume.is_some(),
        })
        .await
        .with_context(|| {
            format!("cannot start libp2p on {} port {}", config.node.listen_ip, config.node.libp2p_port)
        })?;
        let addresses = discovery.addresses.clone();

        let node = identity.node_key().public();
        let credentials = Credentials { node, network: identity.network, grant: identity.grant.clone() };
        let standings = Arc::new(Standings::open(meta.clone(), config.client.strike_after_s.into())?);
        let peers = Arc::new(Peers::new(
            credentials,
            book.clone(),
            standings,
            direct.clone(),
            &discovery,
            traffic.clone(),
            config.node.transport,
        ));
        let catalog = Arc::new(Catalog::new(meta.clone(), logs.clone(), identity.clone()));
        let index_copies = config.client.code.0.parity() + 1;
        let wallet = Arc::new(Wallet::new(market.clone(), peers.clone(), identity.node_key()));
        let materials = Arc::new(Materials::open(&home.file("materials"), config.compute.room.0)?);
        let (compiled, slots) = (home.file("compiled"), crate::capacity::slots(&config.compute));
        let workshop =
            // One more, for what this node runs again itself.
            Arc::new(OpenWorkshop::new(move || Workshop::open(&compiled, COMPILED_MAX_BYTES, slots + 1)));
        let deals = Arc::new(Deals::open(
            &identity,
            meta.clone(),
            chain.clone(),
            wallet.clone(),
            peers.clone(),
            u64::from(config.client.fund_days) * 24 * 3600,
            usize::from(config.client.presign_periods).min(AHEAD_MAX),
        )?);
        let client = Arc::new(Client::new(
            peers,
            catalog,
            deals,
            addresses.clone(),
            index_copies,
            config.client.max_price.storage_price(),
        ));
        let offer = Offer {
            price: config.provide.price.storage_price(),
            read_price: config.provide.read_price.read_price(),
            compute: compute_prices(&config)?,
            collateral: config.provide.collateral.0,
            claim_after_periods: config.provide.claim_after.into(),
        };
        let open_earner = |volume: Arc<Volume>| {
            Earner::open(identity.account, identity.node_key(), offer, meta.clone(), chain.clone(), volume)
        };
        let earner = volume.map(open_earner).transpose()?.map(Arc::new);
        let jobs = open_jobs(&config, &identity, &market, earner.as_ref(), &meta, &materials, &workshop)?;
        let capacity = jobs.clone().map(|jobs| Arc::new(Capacity::new(jobs)));
        let orders = Arc::new(Orders::open(crate::job::Setup {
            identity: identity.clone(),
            verifiers: verifiers_of(&config, &market)?,
            client: client.clone(),
            chain: chain.clone(),
            wallet: wallet.clone(),
            meta: meta.clone(),
            materials: materials.clone(),
            workshop: workshop.clone(),
        })?);
        let is_verifier = config.compute.verify || market.is_here();
        let open_judge = || {
            let (chain, wallet, meta) = (chain.clone(), wallet.clone(), meta.clone());
            let memory_bytes = crate::capacity::memory_bytes(&config.compute);
            Judge::open(node, chain, wallet, meta, materials.clone(), workshop.clone(), memory_bytes)
                .map(Arc::new)
        };
        let judge = is_verifier.then(open_judge).transpose()?;
        let (rate, days) = (config.provide.scrub_rate.0, config.provide.scrub_days);
        let open_scrub = |earner: &Arc<Earner>| {
            Scrub::new(earner.volume().clone(), meta.clone(), traffic.clone(), rate, days)
        };
        let scrub = earner.as_ref().map(open_scrub).transpose()?.map(Arc::new);
        let answerer = Answerer::new(
            identity.network,
            identity.node_key(),
            identity.grant.clone(),
            earner.clone(),
            logs,
            book.clone(),
            Some(market.clone()),
        );
        let answerer = Arc::new(answerer.dialling_back(direct.clone()).running(jobs.clone(), judge.clone()));
        let follower = Arc::new(Follower::new(
            market.clone(),
            client.peers.clone(),
            addresses.clone(),
            config.network.snapshot_after,
        ));
        let budget = Budget {
            deals_per_period: config.challenge.deals_per_period,
            open_max: config.challenge.open_max.into(),
        };
        let challenger = Arc::new(Challenger::open(
            identity.account,
            budget,
            meta.clone(),
            chain.clone(),
            client.peers.clone(),
            wallet.clone(),
        )?);
        let file_alerts = Mutex::new(home.seed_fault(&identity.account).into_iter().collect());
        let node = Arc::new(Self {
            node_key: identity.node_key(),
            identity,
            home: home.clone(),
            config,
            client,
            market,
            follower,
            wallet,
            genesis,
            challenger,
            earner,
            jobs,
            capacity,
            orders,
            scrub,
            traffic,
            addresses,
            reach,
            started: Instant::now(),
            file_alerts,
            meta,
            direct,
            book,
            discovery,
            _lock: lock,
        });
        node.clone().answer(answerer)?;
        tokio::spawn(crate::reach::watch::run(
            node.reach.clone(),
            node.client.peers.clone(),
            node.addresses.clone(),
            node.earner.is_some(),
        ));
        tokio::spawn(node.clone().tidy());
        tokio::spawn(crate::keep::run(node.client.clone()));
        if let Some(earner) = node.earner.clone() {
            tokio::spawn(node.clone().repeat_ask());
            tokio::spawn(earner.run(node.wallet.clone()));
        }
        if let (Some(jobs), Some(capacity)) = (node.jobs.clone(), node.capacity.clone()) {
            tokio::spawn(jobs.run());
            tokio::task::spawn_blocking(move || match workshop.get() {
                Ok(workshop) => capacity.measure(&workshop),
                Err(error) => tracing::error!(%error, "no jobs are offered"),
            });
        }
        node.orders.resume();
        if let Some(judge) = judge {
            tokio::spawn(judge.run());
        }
        tokio::spawn(node.challenger.clone().run());
        if let Some(scrub) = node.scrub.clone() {
            tokio::spawn(scrub.run());
        }
        if !node.market.is_here() {
            tokio::spawn(node.follower.clone().run());
        }
        let serial = Authority::serial(&node.identity.grant);
        let (wallet, grant) = (node.wallet.clone(), node.identity.grant.clone());
        tokio::spawn(async move { wallet.register(grant, serial).await });
        Ok(node)
    }

    /// Serves `spare/1` on both transports.
    fn answer(self: Arc<Self>, answerer: Arc<Answerer>) -> anyhow::Result<()> {
        let serving = answerer.clone();
        let serve = move |mut wire: Wire| {
            let answerer = serving.clone();
            tokio::spawn(async move {
                answerer.serve(&mut wire).await;
            });
        };
        tokio::spawn(self.direct.clone().accept(serve.clone()));
        let mut incoming = self.discovery.links.accept().context("spare/1 is registered once")?;
        let (addresses, traffic) = (self.addresses.clone(), self.traffic.clone());
        tokio::spawn(async move {
            use futures::StreamExt;
            while let Some((peer, stream)) = incoming.next().await {
                let Some(node) = node_key(&peer) else { continue };
                let (addresses, traffic, serve) = (addresses.clone(), traffic.clone(), serve.clone());
                tokio::spawn(async move {
                    let ip = addresses.ip_of_asker(&node).await;
                    let (recv, send) = tokio::io::split(stream.compat());
                    serve(Wire::new(recv, SendHalf::other(send), node, ip, &traffic));
                });
            }
        });
        Ok(())
    }

    /// Says what this provider offers, again and again.
    async fn repeat_ask(self: Arc<Self>) {
        let mut interval = tokio::time::interval(ASK_INTERVAL);
        let mut soon = 3;
        let mut told = Default::default();
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                // How it is reached is part of what it says.
                () = self.reach.changed.notified() => {
                    if self.advertised() == told {
                        continue;
                    }
                    interval.reset_after(Duration::from_secs(2));
                }
            }
            told = self.advertised();
            if let Some(ask) = self.ask() {
                if let Err(error) = self.book.take(ask.raw().clone(), unix_now_s()) {
                    tracing::debug!(%error, "this node's own ask is not news");
                }
                if self.discovery.publish.send(ask.raw().clone()).await.is_err() {
                    return;
                }
            }
            // The mesh of a node that just started forms within seconds: repeat soon, then seldom.
            if soon > 0 {
                soon -= 1;
                interval.reset_after(Duration::from_secs(2));
            }
        }
    }

    /// This provider's ask as of now.
    fn ask(&self) -> Option<Signed<Ask>> {
        let room = self.earner.as_ref()?.volume().room();
        let now_s = unix_now_s();
        let (direct, libp2p) = self.advertised();
        let ask = AskV1 {
            grant: self.identity.grant.clone(),
            operator: self.config.node.operator.clone(),
            direct,
            libp2p,
            offered_bytes: room.offered_bytes,
            free_bytes: room.free_bytes,
            price: self.config.provide.price.storage_price(),
            read_price: self.config.provide.read_price.read_price(),
            region: self.config.node.region.clone(),
            compute: self.capacity.as_ref().and_then(|capacity| capacity.ask()),
            made_s: now_s,
            valid_until_s: now_s + ASK_LIFE_S,
        };
        Some(Signed::new(Ask::V1(ask), self.identity.network, &self.node_key))
    }

    /// Where others are told to dial, directly and by libp2p: no address that nobody can reach, so that nobody wastes dials on it.
    ///
    /// Without an address that can be dialled, a last one without a port says where the NAT is, since shards are kept apart by network.
    fn advertised(&self) -> (Vec<SocketAddr>, Vec<String>) {
        let now_s = unix_now_s();
        let direct = match self.reach.how(Service::Direct, now_s) {
            How::Punch | How::Unreachable => Vec::new(),
            how => {
                first(self.reach.proven(Service::Direct, now_s), self.direct_addrs(), how, |addr| addr.ip())
            }
        };
        let addrs = match self.reach.how(Service::Libp2p, now_s) {
            How::Punch | How::Unreachable => {
                let seen = self.reach.seen_at().map(|addr| Multiaddr::from(addr.ip()));
                self.addresses.circuits().into_iter().chain(seen).collect()
            }
            how => {
                let proven = self.reach.proven(Service::Libp2p, now_s);
                let named = |addr| Some(quic_addr(addr).with(Protocol::P2p(self.peer_id()?)));
                let ip = |addr: &Multiaddr| ip_of(addr).unwrap_or(IpAddr::from([0, 0, 0, 0]));
                first(proven.into_iter().filter_map(named).collect(), self.libp2p_addrs(), how, ip)
            }
        };
        let texts = addrs.iter().map(ToString::to_string).filter(|text| text.len() <= ADDRESS_MAX_BYTES);
        (direct, texts.take(ADDRESSES_MAX).collect())
    }

    fn peer_id(&self) -> Option<PeerId> {
        peer_id(&self.node_key.public())
    }

    /// Where libp2p can be reached, as others should dial it.
    pub fn libp2p_addrs(&self) -> Vec<Multiaddr> {
        let advertised = self.config.node.advertise_ip.0;
        let mut addrs: Vec<Multiaddr> = self.addresses.listening();
        if let Some(ip) = advertised {
            addrs =
                addrs.into_iter().filter_map(|addr| addr.replace(0, |_| Some(Protocol::from(ip)))).collect();
            addrs.sort();
            addrs.dedup();
        }
        // Loopback means nothing to others, unless it is all there is.
        let public: Vec<Multiaddr> = addrs.iter().filter(|a| !is_loopback(a)).cloned().collect();
        let mut addrs = if public.is_empty() { addrs } else { public };
        addrs.truncate(ADDRESSES_MAX);
        addrs
    }

    /// Where direct transfers can be reached, as others should dial it: the same addresses, with the direct port.
    pub fn direct_addrs(&self) -> Vec<SocketAddr> {
        let Ok(bound) = self.direct.local_addr() else { return Vec::new() };
        let ip = |addr: &Multiaddr| match addr.iter().next() {
            Some(Protocol::Ip4(ip)) => Some(ip.into()),
            Some(Protocol::Ip6(ip)) => Some(ip.into()),
            _ => None,
        };
        self.libp2p_addrs().iter().filter_map(ip).map(|ip| SocketAddr::new(ip, bound.port())).collect()
    }

    /// What others need to join the network: this node's addresses, and some providers' in case it is away.
    pub fn ticket(&self) -> Ticket {
        // Not where it can only be asked for through a relay: whoever joins has no relay yet.
        let how = self.reach.how(Service::Libp2p, unix_now_s());
        let mut peers = match how {
            How::Punch | How::Unreachable => Vec::new(),
            _ => self.advertised().1,
        };
        let providers =
            self.book.valid(unix_now_s()).into_iter().filter(|p| p.node != self.node_key.public());
        // What others say of themselves is passed on only if it makes sense.
        let address = |p: crate::asks::Provider| p.plain_addrs().first().map(ToString::to_string);
        peers.extend(providers.filter_map(address).take(TICKET_PROVIDERS_MAX));
        // Where the market was when this node joined: it may offer nothing, and then no ask says where it is.
        let market = crate::transport::peer_id(&self.market.node).map(|peer| format!("/p2p/{peer}"));
        let known = self.config.network.peers.iter();
        let of_market = known.filter(|addr| market.as_ref().is_some_and(|suffix| addr.ends_with(suffix)));
        for addr in of_market {
            if !peers.contains(addr) {
                peers.push(addr.clone());
            }
        }
        Ticket::V1 { genesis: self.genesis.clone(), peers }
    }

    /// Brings index copies up to date and deletes what is no longer needed, in the background.
    async fn tidy(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TIDY_INTERVAL);
        interval.tick().await;
        loop {
            interval.tick().await;
            self.client.find_providers(|c| !c.peers.candidates().is_empty()).await;
            self.client.tidy().await;
        }
    }

    /// Compares the settings in the file with those of the last run: nobody can tell a flipped bit in a number from a change that was meant, but whoever
    /// made none can.
    pub fn compare_settings(&self, in_file: BTreeMap<String, String>) {
        let known: Option<BTreeMap<String, String>> = match self.meta.get(Table::State, SETTINGS_KEY) {
            Ok(known) => known,
            Err(error) => return tracing::error!(%error, "the last run's settings cannot be read"),
        };
        let known = known.unwrap_or_else(|| in_file.clone());
        for key in known.keys().chain(in_file.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (known.get(key), in_file.get(key));
            if was != is {
                let show = |value: Option<&String>| value.map_or("not set", String::as_str).to_owned();
                let change = format!("config.toml: {key} was {}, and is {}", show(was), show(is));
                tracing::warn!("{change}");
                let alert = format!("{change}, since this start. If nobody changed it, the file is damaged");
                self.file_alerts.lock().expect("no holder panics").push(alert);
            }
        }
        if let Err(error) = self.meta.note(Batch::default().put(Table::State, SETTINGS_KEY, &in_file)) {
            tracing::error!(%error, "the settings cannot be remembered");
        }
    }

    /// Tells peers that this node stops, and closes its store.
    pub async fn close(&self) {
        if let Some(jobs) = &self.jobs {
            jobs.close();
        }
        tokio::join!(self.direct.close(), self.discovery.close());
        let meta = self.meta.clone();
        match tokio::task::spawn_blocking(move || meta.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the metadata store was not closed in good order"),
            Err(error) => tracing::error!(%error, "closing the metadata store ended abnormally"),
        }
    }
}

/// Addresses that others got through to come first. Once one is known outside, those that mean something in this network alone are left out.
fn first<A: PartialEq>(proven: Vec<A>, own: Vec<A>, how: How, ip: impl Fn(&A) -> IpAddr) -> Vec<A> {
    let is_public = matches!(how, How::Public | How::Mapped);
    let own = own.into_iter().filter(|addr| !is_public || !is_private(ip(addr)));
    let mut all = if is_public { proven } else { Vec::new() };
    for addr in own {
        if !all.contains(&addr) {
            all.push(addr);
        }
    }
    all.truncate(ADDRESSES_MAX);
    all
}

fn is_loopback(addr: &Multiaddr) -> bool {
    match addr.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

/// The verifiers that orders name, in order of key.
fn verifiers_of(config: &Config, market: &Market) -> anyhow::Result<Vec<PublicKey>> {
    let named = config.client.verifiers.iter().map(|key| key.parse()).collect::<Result<Vec<PublicKey>, _>>();
    let mut named = named.context("a verifier in client.verifiers is not a node key")?;
    if named.is_empty() {
        named.push(market.node);
    }
    named.sort_unstable();
    named.dedup();
    anyhow::ensure!(
        named.len() <= VERIFIERS_MAX,
        "client.verifiers names more than {VERIFIERS_MAX} verifiers"
    );
    Ok(named)
}

/// Prices of jobs, if any are offered.
fn compute_prices(config: &Config) -> anyhow::Result<Option<ComputePrices>> {
    if !config.compute.offer {
        return Ok(None);
    }
    Ok(Some(config.compute.prices().map_err(anyhow::Error::msg)?))
}

/// The provider's jobs, if any are offered.
fn open_jobs(
    config: &Config,
    identity: &Identity,
    market: &Market,
    earner: Option<&Arc<Earner>>,
    meta: &Arc<Meta>,
    materials: &Arc<Materials>,
    workshop: &Arc<OpenWorkshop>,
) -> anyhow::Result<Option<Arc<Jobs>>> {
    let (Some(prices), Some(earner)) = (compute_prices(config)?, earner) else { return Ok(None) };
    let workshop =
        workshop.get().context("compute.offer is on; switch it off to run without jobs of others")?;
    let verifiers = config.compute.verifiers.iter().map(|key| key.parse()).collect::<Result<Vec<_>, _>>();
    let mut verifiers = verifiers.context("a verifier in compute.verifiers is not a node key")?;
    verifiers.push(market.node);
    let offer = crate::jobs::Offer {
        prices,
        slots: crate::capacity::slots(&config.compute),
        memory_bytes: crate::capacity::memory_bytes(&config.compute),
        output_bytes: config.compute.output.0,
        verifiers,
    };
    let jobs = Jobs::open(
        identity.network,
        identity.node_key(),
        offer,
        earner.clone(),
        meta.clone(),
        materials.clone(),
        workshop,
    )?;
    Ok(Some(Arc::new(jobs)))
}

fn open_volume(home: &Home, config: &Config, meta: &Arc<Meta>) -> anyhow::Result<Option<Arc<Volume>>> {
    // Who offers nothing more still serves what was stored.
    if config.provide.size.0 == 0 && !config.compute.offer && !Volume::is_known_to(meta)? {
        return Ok(None);
    }
    let dir = match config.provide.dir.as_str() {
        "" => home.file("volume"),
        dir => PathBuf::from(dir),
    };
    let volume = Volume::open(&dir, meta.clone(), config.provide.size.0)
        .with_context(|| format!("the folder for shards, {}, cannot be used", dir.display()))?;
    let room = volume.room();
    if room.offered_bytes > room.used_bytes.saturating_add(room.disk_bytes) {
        tracing::warn!(
            offered_bytes = room.offered_bytes,
            disk_bytes = room.disk_bytes,
            "provide.size is more than the disk has; only what is there is offered"
        );
    }
    Ok(Some(Arc::new(volume)))
}
