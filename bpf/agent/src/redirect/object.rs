//! The object file: its programs loaded, its maps pinned or taken over.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, SockHash,
    },
    programs::Program,
};
use seine_bpf_common::{
    CidrData, Enrolled, ListenerKey, Meta, Original, PortKey, Proxies, SCHEMA, SocketState, Tuple,
};

use super::{RedirectError, Result};

/// The programs, as `bpf/build.sh` built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../seine-bpf.o");

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Every map of the object, pinned under its name: its kind, and sizes of key and value.
const MAPS: [(&str, MapType, usize, usize); 12] = [
    ("META", MapType::Array, size_of::<u32>(), size_of::<Meta>()),
    (
        "COUNTERS",
        MapType::PerCpuArray,
        size_of::<u32>(),
        size_of::<u64>(),
    ),
    (
        "ENROLLED",
        MapType::Hash,
        size_of::<u64>(),
        size_of::<Enrolled>(),
    ),
    (
        "PROXIES",
        MapType::Array,
        size_of::<u32>(),
        size_of::<Proxies>(),
    ),
    ("PORTS", MapType::Hash, size_of::<PortKey>(), 1),
    // The key begins with the length of its prefix.
    (
        "CIDRS",
        MapType::LpmTrie,
        size_of::<u32>() + size_of::<CidrData>(),
        1,
    ),
    (
        "ORIGINALS",
        MapType::LruHash,
        size_of::<Tuple>(),
        size_of::<Original>(),
    ),
    ("PROXY_DIALS", MapType::Hash, size_of::<Tuple>(), 1),
    ("PROBES", MapType::LruHash, size_of::<Tuple>(), 1),
    ("GUARDED", MapType::Hash, size_of::<u32>(), size_of::<u64>()),
    (
        "LISTENERS",
        MapType::SockHash,
        size_of::<ListenerKey>(),
        size_of::<u32>(),
    ),
    (
        "SOCKETS",
        MapType::SkStorage,
        size_of::<u32>(),
        size_of::<SocketState>(),
    ),
];

/// The program of each pod's netns, loaded once for each.
pub(super) const STEER: &str = "steer";
/// The program at the host's end of each veth.
pub(super) const GUARD: &str = "guard";

/// Where things are pinned.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the folders.
    pub(super) fn make(root: &Path) -> Result<Self> {
        let failed = |error| RedirectError::call("mkdir", root.display().to_string(), error);
        std::fs::create_dir_all(root).map_err(failed)?;
        if super::sys::filesystem(root).map_err(failed)? != BPF_FS_MAGIC {
            return Err(RedirectError::Invalid(format!(
                "{} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf)",
                root.display()
            )));
        }
        let pins = Self {
            root: root.to_owned(),
        };
        for folder in ["maps", "links", "pods"] {
            std::fs::create_dir_all(root.join(folder)).map_err(failed)?;
        }
        Ok(pins)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of one pod's links.
    pub(super) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(format!("{cookie:016x}"))
    }

    pub(super) fn steer(&self, cookie: u64) -> PathBuf {
        self.pod(cookie).join(STEER)
    }

    pub(super) fn guard(&self, cookie: u64, ifindex: u32) -> PathBuf {
        self.pod(cookie).join(format!("{GUARD}-{ifindex}"))
    }
}

/// The node's programs and maps.
pub(super) struct Loaded {
    /// Loads the object again for each pod.
    loader: EbpfLoader<'static>,
    programs: Ebpf,
    pub(super) enrolled: HashMap<MapData, u64, Enrolled>,
    pub(super) proxies: Array<MapData, Proxies>,
    pub(super) ports: HashMap<MapData, PortKey, u8>,
    pub(super) cidrs: LpmTrie<MapData, CidrData, u8>,
    pub(super) guarded: HashMap<MapData, u32, u64>,
    pub(super) listeners: SockHash<MapData, ListenerKey>,
    pub(super) counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl Loaded {
    /// Loads every node-wide program; takes over pinned maps of this schema, and refuses others
    /// before anything is touched.
    pub(super) fn load(pins: &Pins) -> Result<Self> {
        check_schema(pins)?;
        check_shapes(pins)?;
        let mut loader = loader(pins);
        let mut programs = loader
            .load(OBJECT)
            .map_err(|error| RedirectError::program("loading the eBPF object", error))?;
        let mut meta: Array<MapData, Meta> = take(&mut programs, pins, "META")?;
        meta.set(
            0,
            Meta {
                schema: SCHEMA,
                ..Meta::default()
            },
            0,
        )
        .map_err(|error| RedirectError::program("writing map META", error))?;
        let mut loaded = Self {
            enrolled: take(&mut programs, pins, "ENROLLED")?,
            proxies: take(&mut programs, pins, "PROXIES")?,
            ports: take(&mut programs, pins, "PORTS")?,
            cidrs: take(&mut programs, pins, "CIDRS")?,
            guarded: take(&mut programs, pins, "GUARDED")?,
            listeners: take(&mut programs, pins, "LISTENERS")?,
            counters: take(&mut programs, pins, "COUNTERS")?,
            programs,
            loader,
        };
        for (name, program) in loaded.programs.programs_mut() {
            if name != STEER {
                load_program(name, program)?;
            }
        }
        Ok(loaded)
    }

    /// Loads the program of one pod's netns, over the same maps.
    pub(super) fn load_steer(&mut self, cookie: u64) -> Result<OwnedFd> {
        // The loader borrows its constants for as long as it lives: eight bytes for each enrolment.
        let cookie: &'static u64 = Box::leak(Box::new(cookie));
        let mut programs = self
            .loader
            .override_global("COOKIE", cookie, true)
            .load(OBJECT)
            .map_err(|error| RedirectError::program("loading the eBPF object for a pod", error))?;
        let program = programs
            .program_mut(STEER)
            .ok_or_else(|| RedirectError::Invalid(format!("the object has no program {STEER}")))?;
        load_program(STEER, program)?;
        program
            .fd()
            .map_err(|error| RedirectError::program(format!("program {STEER}"), error))?
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| RedirectError::call("dup", "program steer", error))
    }

    /// A loaded program.
    pub(super) fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let program = self
            .programs
            .program(name)
            .ok_or_else(|| RedirectError::Invalid(format!("the object has no program {name}")))?;
        let descriptor = program
            .fd()
            .map_err(|error| RedirectError::program(format!("program {name}"), error))?;
        Ok(descriptor.as_fd())
    }

    /// A loaded program as aya has it, for what aya attaches.
    pub(super) fn program_mut(&mut self, name: &str) -> Result<&mut Program> {
        self.programs
            .program_mut(name)
            .ok_or_else(|| RedirectError::Invalid(format!("the object has no program {name}")))
    }
}

fn loader(pins: &Pins) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // The kernel's own types, which it has parsed by now, are megabytes and of no use here.
    loader.btf(None);
    for (name, ..) in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
}

fn load_program(name: &str, program: &mut Program) -> Result<()> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => {
            return Err(RedirectError::Invalid(format!(
                "program {name} is of a type this agent does not load ({:?})",
                other.prog_type()
            )));
        }
    }
    .map_err(|error| RedirectError::program(format!("loading program {name}"), error))
}

/// Refuses pinned maps of another schema.
fn check_schema(pins: &Pins) -> Result<()> {
    let path = pins.map("META");
    if !path.exists() {
        return Ok(());
    }
    let foreign = |error: MapError| RedirectError::ForeignMap {
        path: path.clone(),
        detail: error.to_string(),
    };
    let map = Map::from_map_data(MapData::from_pin(&path).map_err(foreign)?).map_err(foreign)?;
    let meta: Array<MapData, Meta> = map.try_into().map_err(foreign)?;
    let found = meta.get(&0, 0).map_err(foreign)?.schema;
    // 0: an agent stopped between making the maps and saying what they are.
    if found != SCHEMA && found != 0 {
        return Err(RedirectError::Schema {
            path: pins.map(""),
            found,
            expected: SCHEMA,
        });
    }
    Ok(())
}

/// Refuses pinned maps of the right schema and another shape: programs would write past their values, or
/// the verifier would say so in its own words.
fn check_shapes(pins: &Pins) -> Result<()> {
    for (name, kind, key, value) in MAPS {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let shape = |info: MapInfo| {
            let (key, value) = (info.key_size() as usize, info.value_size() as usize);
            Ok((info.map_type()?, key, value))
        };
        let found = MapInfo::from_pin(&path).and_then(shape);
        let detail = match found {
            Ok(found) if found == (kind, key, value) => continue,
            Ok((kind, key, value)) => format!("{kind:?}, key {key} bytes, value {value} bytes"),
            Err(error) => error.to_string(),
        };
        return Err(RedirectError::ForeignMap { path, detail });
    }
    Ok(())
}

/// Takes a map out of the object.
fn take<M: TryFrom<Map, Error = MapError>>(
    programs: &mut Ebpf,
    pins: &Pins,
    name: &str,
) -> Result<M> {
    let map = programs
        .take_map(name)
        .ok_or_else(|| RedirectError::Invalid(format!("the object has no map {name}")))?;
    M::try_from(map).map_err(|error| RedirectError::ForeignMap {
        path: pins.map(name),
        detail: error.to_string(),
    })
}
