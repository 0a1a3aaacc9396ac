//! The world of a test: a node (the test thread's own netns), an enrollable pod, an outside host
//! behind the node, cgroups as on a Kubernetes node, a bpffs folder, and a stand-in for the proxy.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use seine_agent::redirect::{
    Counter, Enrolment, InboundListeners, OlderConnections, PodNetns, PodSettings, Redirect,
    RedirectConfig,
};
use seine_bpf_common::{Original, Tuple};
use socket2::{Domain, Protocol, Socket, Type};

use crate::process::{Netns, Process};

pub(crate) const NODE4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
pub(crate) const POD4: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
pub(crate) const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(10, 9, 2, 2);
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd09, 1, 0, 0, 0, 0, 0, 2);
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd09, 2, 0, 0, 0, 0, 0, 2);
/// Where the pod's application and the outside host's server listen.
pub(crate) const APP: u16 = 8080;
pub(crate) const SERVER: u16 = 7000;

pub(crate) struct World {
    pub(crate) redirect: Option<Redirect>,
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) outside: Netns,
    pub(crate) base: PathBuf,
    pub(crate) bpffs: PathBuf,
    /// Interface index of the host's end of the pod's veth.
    pub(crate) veth: u32,
    pub(crate) listeners: Option<Listeners>,
    _servers: Vec<Process>,
}

/// The proxy's sockets, made in the agent's cgroup and the pod's netns.
pub(crate) struct Listeners {
    pub(crate) sockets: Vec<OwnedFd>,
    _maker: Process,
}

/// In which order [`Listeners::sockets`] come: (is it a stream, port, IPv6).
const SOCKETS: [(bool, u16, bool); 8] = [
    (true, 15001, false),
    (true, 15001, true),
    (true, 15006, false),
    (true, 15006, true),
    (false, 15053, false),
    (false, 15053, true),
    (true, 15053, false),
    (true, 15053, true),
];

/// Runs a test in a world of its own, on a thread whose netns is the node. One at a time: a process
/// that one test forks would hold the sockets of another.
pub(crate) fn world(test: impl FnOnce(&mut World) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root");
        return;
    }
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut world = World::make();
        test(&mut world);
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl World {
    fn make() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("seine-test-{}-{number}", std::process::id());
        let base = cgroup_mount().join(&name);
        for cgroup in [
            "kubelet",
            "kubepods/agent",
            "kubepods/ztunnel",
            "kubepods/pod",
        ] {
            fs::create_dir_all(base.join(cgroup)).unwrap();
        }
        let bpffs = std::env::temp_dir().join(&name);
        fs::create_dir_all(&bpffs).unwrap();
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();

        let node = Netns::current();
        let (pod, outside) = (Netns::new(), Netns::new());
        node.sh("ip link set lo up");
        let veth = connect(&node, &pod, "pod0", "eth0", 1);
        connect(&node, &outside, "out0", "eth0", 2);
        for (file, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/pod0/rp_filter", "0"),
            ("ipv4/conf/out0/rp_filter", "0"),
        ] {
            fs::write(format!("/proc/sys/net/{file}"), value).unwrap();
        }
        let mut world = Self {
            redirect: None,
            node,
            pod,
            outside,
            base,
            bpffs,
            veth,
            listeners: None,
            _servers: Vec::new(),
        };
        world._servers = vec![
            server(&world.cgroup("kubepods/pod"), &world.pod, APP, "app"),
            server(&world.base, &world.outside, SERVER, "outside"),
        ];
        world.load();
        world
    }

    pub(crate) fn cgroup(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    pub(crate) fn config(&self) -> RedirectConfig {
        RedirectConfig {
            bpffs: self.bpffs.join("seine"),
            pods_cgroup: self.cgroup("kubepods"),
            ztunnel_cgroups: vec![self.cgroup("kubepods/ztunnel")],
            kubelet_cgroup: Some(self.cgroup("kubelet")),
        }
    }

    /// Starts an agent, as it were, in place of the one before.
    pub(crate) fn load(&mut self) {
        self.redirect = None;
        self.redirect = Some(Redirect::load(self.config()).unwrap());
    }

    pub(crate) fn redirect(&self) -> &Redirect {
        self.redirect.as_ref().unwrap()
    }

    pub(crate) fn settings(&self) -> PodSettings {
        PodSettings {
            ipv4: Some(POD4),
            ipv6: Some(POD6),
            host_ifindexes: BTreeSet::from([self.veth]),
            ..PodSettings::default()
        }
    }

    /// Enrols the pod, with the proxy's listeners but no proxy yet.
    pub(crate) fn enrol(&mut self, settings: &PodSettings, older: OlderConnections) -> Enrolment {
        if self.listeners.is_none() {
            self.listeners = Some(listeners(&self.cgroup("kubepods/agent"), &self.pod));
        }
        let sockets = &self.listeners.as_ref().unwrap().sockets;
        self.redirect()
            .enrol(PodNetns {
                netns: self.pod.fd(),
                settings,
                inbound: InboundListeners {
                    ipv4: Some(sockets[2].as_fd()),
                    ipv6: Some(sockets[3].as_fd()),
                },
                older_connections: older,
            })
            .unwrap()
    }

    /// Enrols the pod with default settings, and starts the proxy.
    pub(crate) fn meshed(&mut self) -> (u64, Process) {
        let settings = self.settings();
        self.meshed_with(&settings)
    }

    pub(crate) fn meshed_with(&mut self, settings: &PodSettings) -> (u64, Process) {
        let cookie = self.enrol(settings, OlderConnections::Leave).cookie;
        (cookie, self.proxy())
    }

    /// Starts a stand-in for the proxy in the pod: each connection is told what it would do.
    pub(crate) fn proxy(&self) -> Process {
        let listeners = self.listeners.as_ref().unwrap();
        let numbers: Vec<i32> = listeners
            .sockets
            .iter()
            .map(|socket| socket.as_raw_fd())
            .collect();
        Process::start(&self.cgroup("kubepods/ztunnel"), &self.pod, move |_| {
            let workers: Vec<_> = SOCKETS
                .iter()
                .zip(numbers)
                .map(|((stream, port, ipv6), number)| {
                    // SAFETY: inherited by the fork and used by this thread alone.
                    let socket: Socket = unsafe { std::os::fd::FromRawFd::from_raw_fd(number) };
                    std::thread::spawn(move || match (stream, port) {
                        (true, 15001) => outbound(&socket, *ipv6, "caught"),
                        (true, 15053) => outbound(&socket, *ipv6, "query caught"),
                        (true, _) => answer(&TcpListener::from(socket), "inbound"),
                        (false, _) => resolve(socket),
                    })
                })
                .collect();
            for worker in workers {
                let _ = worker.join();
            }
        })
    }

    /// Runs something as the pod's application.
    pub(crate) fn in_pod(&self, work: impl FnOnce() -> String) -> String {
        Process::call(&self.cgroup("kubepods/pod"), &self.pod, work)
    }

    /// Runs something as the proxy, in the pod's netns.
    pub(crate) fn in_proxy(&self, work: impl FnOnce() -> String) -> String {
        Process::call(&self.cgroup("kubepods/ztunnel"), &self.pod, work)
    }

    /// Runs something on the outside host.
    pub(crate) fn outside(&self, work: impl FnOnce() -> String) -> String {
        Process::call(&self.base, &self.outside, work)
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        let counters = self.redirect().counters().unwrap();
        counters
            .iter()
            .find(|(name, _)| *name == counter)
            .unwrap()
            .1
    }

    /// How many tuples a pinned map holds.
    pub(crate) fn tuples(&self, name: &str) -> usize {
        fn count<V: aya::Pod>(map: Map) -> usize {
            let map: HashMap<MapData, Tuple, V> = map.try_into().unwrap();
            map.keys().count()
        }
        let pin = self.bpffs.join("seine/maps").join(name);
        let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
        if name == "ORIGINALS" {
            count::<Original>(map)
        } else {
            count::<u8>(map)
        }
    }

    /// Ids of the programs that the node-wide links run.
    pub(crate) fn programs(&self) -> Vec<u32> {
        let status = self.redirect().status().unwrap();
        assert!(
            status.attachments.iter().all(|a| a.right),
            "{:?}",
            status.attachments
        );
        status.attachments.iter().map(|a| a.program_id).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self._servers.clear();
        self.listeners = None;
        self.redirect = None;
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.bpffs);
        for cgroup in [
            "kubepods/pod",
            "kubepods/ztunnel",
            "kubepods/agent",
            "kubepods",
            "kubelet",
            "",
        ] {
            for _ in 0..200 {
                match fs::remove_dir(self.base.join(cgroup)) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// The mount of the cgroup v2 hierarchy, wherever it is.
fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    line.expect("no cgroup v2 is mounted")
        .split(' ')
        .nth(1)
        .unwrap()
        .into()
}

/// Joins a netns to the node by a veth, network `10.9.N.0/24` and `fd09:N::/64`.
pub(crate) fn connect(node: &Netns, inner: &Netns, outer: &str, name: &str, number: u8) -> u32 {
    // Through a netns of its own descriptor, since the namespaces have no names.
    let path = format!("/proc/{}/fd/{}", std::process::id(), inner.0.as_raw_fd());
    node.sh(&format!(
        "ip link add {outer} type veth peer name {name} netns {path}"
    ));
    node.sh(&format!("ip addr add 10.9.{number}.1/24 dev {outer}"));
    node.sh(&format!(
        "ip addr add fd09:{number}::1/64 dev {outer} nodad"
    ));
    node.sh(&format!("ip link set {outer} up"));
    inner.sh(&format!("ip addr add 10.9.{number}.2/24 dev {name}"));
    inner.sh(&format!("ip addr add fd09:{number}::2/64 dev {name} nodad"));
    inner.sh(&format!("ip link set {name} up"));
    if number < 3 {
        inner.sh(&format!("ip route add default via 10.9.{number}.1"));
        inner.sh(&format!("ip route add default via fd09:{number}::1"));
    }
    let outer = outer.to_owned();
    node.within(move || nix::net::if_::if_nametoindex(outer.as_str()).unwrap())
}

/// A server that tells each client who it is and whom the client seems to be.
fn server(cgroup: &Path, netns: &Netns, port: u16, name: &'static str) -> Process {
    let mut process = Process::start(cgroup, netns, |output| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        writeln!(output, "ready").unwrap();
        answer(&listener, name);
    });
    assert_eq!(process.line(), "ready");
    process
}

fn answer(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let _ = write!(
            stream,
            "{name} at {} for {}",
            plain(local),
            plain(peer).ip()
        );
    }
}

/// Answers caught connections with the destination that they had.
fn outbound(listener: &Socket, ipv6: bool, word: &str) {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let original = if ipv6 {
            stream.original_dst_v6()
        } else {
            stream.original_dst_v4()
        };
        let text = match original {
            Ok(address) => format!("{word} to {}", address.as_socket().unwrap()),
            Err(error) => format!("no original destination: {error}"),
        };
        let _ = stream.write_all(text.as_bytes());
        // What came early must be read, or the close is a reset.
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        while stream.read(&mut [0; 512]).is_ok_and(|length| length > 0) {}
    }
}

/// Answers each query with its own bytes behind a word.
fn resolve(socket: Socket) {
    let socket = std::net::UdpSocket::from(socket);
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query).unwrap();
        let answer = [b"proxied ", &query[..length]].concat();
        let _ = socket.send_to(&answer, from);
    }
}

/// An address in its plain form.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// Makes the proxy's sockets as the agent does: in the agent's cgroup, in the pod's netns.
pub(crate) fn listeners(cgroup: &Path, pod: &Netns) -> Listeners {
    let mut maker = Process::start(cgroup, pod, |output| {
        let sockets: Vec<Socket> = SOCKETS.iter().map(listen).collect();
        for socket in &sockets {
            write!(output, "{} ", socket.as_raw_fd()).unwrap();
        }
        writeln!(output).unwrap();
        loop {
            nix::unistd::pause();
        }
    });
    let numbers = maker.line();
    let sockets = numbers
        .split_whitespace()
        .map(|number| maker.steal(number.parse().unwrap()))
        .collect();
    Listeners {
        sockets,
        _maker: maker,
    }
}

fn listen((stream, port, ipv6): &(bool, u16, bool)) -> Socket {
    let domain = if *ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let any = *port == 15006;
    let ip: IpAddr = match (ipv6, any) {
        (false, false) => Ipv4Addr::LOCALHOST.into(),
        (false, true) => Ipv4Addr::UNSPECIFIED.into(),
        (true, false) => Ipv6Addr::LOCALHOST.into(),
        (true, true) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (kind, protocol) = if *stream {
        (Type::STREAM, Protocol::TCP)
    } else {
        (Type::DGRAM, Protocol::UDP)
    };
    let socket = Socket::new(domain, kind, Some(protocol)).unwrap();
    if *ipv6 {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&SocketAddr::new(ip, *port).into()).unwrap();
    if *stream {
        socket.listen(1024).unwrap();
    }
    socket
}
