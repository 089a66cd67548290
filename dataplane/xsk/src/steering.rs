//! The steering program: which packets of an interface go to AF_XDP, and which stay with the kernel.
//!
//! The program is `steering.bpf.c`; this is its loader and the one writer of its maps. The link and the maps are pinned
//! in a bpffs, under `<pin dir>/<interface>/`, so that they outlive the process: between one process and the next the
//! program stays and drops what it has no socket for. Invariants: the program on the interface is the one behind the pin
//! `link`; what [`Steering::set_addresses`] keeps in memory is what the maps hold, also after an error half-way.
//!
//! Sources: `Documentation/bpf/map_xskmap.rst`, `Documentation/bpf/libbpf/program_types.rst` (section names).

use std::{
    fmt, fs, io,
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, XskMap},
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        xdp::XdpLink,
    },
    util::KernelVersion,
};

use crate::{XskError, addresses::AddressMaps, bpffs, link, link::AttachedProgram};

/// How many queues of an interface can be steered: the size of the socket map.
pub const MAX_QUEUES: u32 = 64;

/// The oldest kernel that has all that the program needs (`xdp.frags` with AF_XDP).
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(6, 1, 0);

/// How long the kernel may take to let go of a program whose link was removed.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// Windows in which SYNs are counted have 2^24 ns: `WINDOW_SHIFT` of `steering.bpf.c`.
const WINDOW_SHIFT: u32 = 24;

/// The compiled program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steering.o"));
pub(crate) const PROGRAM: &str = "millrace_steer";
pub(crate) const LINK_PIN: &str = "link";

/// The maps of `steering.bpf.c`: the sizes of their keys and values in bytes, and how many entries they have room for.
pub(crate) const MAPS: [(&str, [u32; 3]); 9] = [
    ("xsks", [4, 4, MAX_QUEUES]),
    ("addresses", [16, 8, 65_536]),
    ("ports", [20, 4, 262_144]),
    ("sources", [20, 4, 262_144]),
    ("fragments", [40, 4, 16_384]),
    ("station", [4, 8, 1]),
    ("syn_limit", [4, 4, 1]),
    ("syn_windows", [16, 16, 16_384]),
    ("counters", [4, 8, 4]),
];

/// How the steering program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// Native, and generic if the driver cannot. Never the answer of [`Steering::mode`].
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's stack, for any driver.
    Generic,
}

/// An address whose packets go to AF_XDP, or must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SteeredAddress {
    /// Everything for it, whatever the protocol, ARP and neighbour discovery too: the kernel does not own it.
    Whole(IpAddr),
    /// Some ports of an address that the host owns.
    Ports {
        /// The address.
        address: IpAddr,
        /// IP protocol number and port, in host order.
        ports: Vec<(u8, u16)>,
        /// First and last port of a range in which TCP, UDP and SCTP alike are steered.
        range: Option<(u16, u16)>,
    },
    /// An endpoint that sees the clients' own addresses: what it sends from this port to anybody who is neither steered
    /// nor the host ([`SteeredAddress::Host`]) is a reply. Packets that are none cannot be told from here, and go to
    /// AF_XDP like replies.
    Source {
        /// The endpoint's address.
        address: IpAddr,
        /// IP protocol number: TCP, UDP or SCTP.
        protocol: u8,
        /// The endpoint's port, in host order.
        port: u16,
    },
    /// An address of the host's own of which nothing is steered: what a [`SteeredAddress::Source`] sends there (answers
    /// to health checks) stays with the kernel. It yields to any other meaning of the address.
    Host(IpAddr),
}

/// Packets by what the steering program did with them, over all CPUs, since its maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeringCounters {
    /// Handed to a socket.
    pub redirected: u64,
    /// For Millrace, but no socket was bound to the queue.
    pub no_socket_dropped: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// SYNs dropped beyond [`Steering::set_syn_limit`].
    pub syn_flood_dropped: u64,
}

/// The steering program on one interface.
///
/// Dropping it leaves program, maps and steered addresses in place for a successor; [`Steering::detach`] removes them.
pub struct Steering {
    interface: String,
    mode: AttachMode,
    addresses: AddressMaps,
    xsks: XskMap<MapData>,
    /// `struct station`.
    station: Array<MapData, [u8; 8]>,
    mac: [u8; 6],
    syn_limit: Array<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Steering {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Steering")
            .field("interface", &self.interface)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Steering {
    /// Attaches the steering program to `interface`, in the calling thread's network namespace, and pins it in
    /// `<pin_dir>/<interface>/`; `pin_dir` lies in a bpffs.
    ///
    /// Pins of a predecessor, dead or still running, are taken over: its maps with their contents are kept, and its
    /// link's program is replaced in one step, in the mode that the link has. A map whose layout is another version's is
    /// made anew, empty.
    ///
    /// From then on unicast frames to other link-layer addresses than the interface's stay with the kernel; see
    /// [`Steering::set_station`].
    ///
    /// # Errors
    ///
    /// [`XskError::Kernel`] before 6.1, [`XskError::ForeignProgram`] if another program holds the interface,
    /// [`XskError::Load`], [`XskError::Map`] and [`XskError::Attach`] when the kernel refuses.
    pub fn attach(interface: &str, mode: AttachMode, pin_dir: &Path) -> Result<Steering, XskError> {
        check_kernel()?;
        let index = link::index(interface)?;
        let dir = interface_dir(pin_dir, interface);
        let at = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| XskError::Path { action, path, source }
        };
        fs::create_dir_all(&dir).map_err(at("cannot make", &dir))?;
        if !bpffs::is_bpffs(&dir).map_err(at("cannot look at", &dir))? {
            return Err(at("cannot pin in", &dir)(io::Error::other("it does not lie in a bpffs")));
        }
        remove_other_layouts(&dir)?;
        let load_error =
            |source: Box<dyn std::error::Error + Send + Sync>| XskError::Load { interface: interface.into(), source };
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&dir)
            .load(OBJECT)
            .map_err(|error| load_error(Box::new(error)))?;
        // Before the program runs: what a predecessor left may be the address of an interface that is gone.
        let mut steering = Steering::with_maps(interface, mode, &mut object)?;
        steering.set_station(link::mac(interface)?.unwrap_or_default())?;
        let program: &mut Xdp = object
            .program_mut(PROGRAM)
            .ok_or_else(|| load_error("the object has no steering program".into()))?
            .try_into()
            .map_err(|error: ProgramError| load_error(Box::new(error)))?;
        program.load().map_err(|error| load_error(Box::new(error)))?;
        let id = program.info().map_err(|error| load_error(Box::new(error)))?.id();
        let pin = dir.join(LINK_PIN);
        if !take_over(program, interface, id, &pin)? {
            attach_anew(program, interface, index, mode, &pin)?;
        }
        let found = link::attached(interface)?;
        let Some(AttachedProgram { mode, .. }) = found.filter(|found| found.id == id) else {
            let found = found.map(|found| found.id);
            return Err(XskError::NotAttached { interface: interface.into(), expected: id, found });
        };
        tracing::info!(interface, ?mode, program = id, "steering program attached");
        steering.mode = mode;
        Ok(steering)
    }

    fn with_maps(interface: &str, mode: AttachMode, object: &mut Ebpf) -> Result<Steering, XskError> {
        let missing = |map: &str| XskError::Load {
            interface: interface.into(),
            source: format!("the object has no map {map}").into(),
        };
        let mut take = |map: &'static str| object.take_map(map).ok_or_else(|| missing(map));
        let wrap = |map| move |source| XskError::Map { map, source };
        Ok(Steering {
            interface: interface.into(),
            mode,
            addresses: AddressMaps::adopt(
                take("addresses")?.try_into().map_err(wrap("addresses"))?,
                take("ports")?.try_into().map_err(wrap("ports"))?,
                take("sources")?.try_into().map_err(wrap("sources"))?,
            )?,
            xsks: take("xsks")?.try_into().map_err(wrap("xsks"))?,
            station: take("station")?.try_into().map_err(wrap("station"))?,
            mac: [0; 6],
            syn_limit: take("syn_limit")?.try_into().map_err(wrap("syn_limit"))?,
            counters: take("counters")?.try_into().map_err(wrap("counters"))?,
        })
    }

    /// The mode that the program is attached in, as the kernel has it: native or generic.
    #[must_use]
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// The interface that it steers.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Steers exactly `addresses` from now on.
    ///
    /// Only what changed is written; what is new is there before what is gone is removed. The order and repetitions do
    /// not matter; port lists of one address add up.
    ///
    /// # Errors
    ///
    /// [`XskError::Contradiction`] before anything is changed; [`XskError::Map`] when a map is full (65,536 addresses,
    /// 262,144 ports, 262,144 sources) or cannot be written, with the changes up to there done. Calling again goes on
    /// from there.
    pub fn set_addresses(&mut self, addresses: &[SteeredAddress]) -> Result<(), XskError> {
        self.addresses.set(addresses)?;
        self.write_station()
    }

    /// The [`SteeredAddress::Source`]s that are steered, those that a predecessor left included, as (address, protocol,
    /// port).
    pub fn sources(&self) -> impl Iterator<Item = (IpAddr, u8, u16)> {
        self.addresses.sources()
    }

    /// The interface's link-layer address is `mac` now: unicast frames to others are left to the kernel, which drops
    /// them, for a switch that floods and promiscuous mode bring them here. Attaching does this too; this is for an
    /// interface that changes its address. All zeros: it has none, every frame is for it.
    ///
    /// # Errors
    ///
    /// [`XskError::Map`] when the kernel refuses.
    pub fn set_station(&mut self, mac: [u8; 6]) -> Result<(), XskError> {
        self.mac = mac;
        self.write_station()
    }

    fn write_station(&mut self) -> Result<(), XskError> {
        let mut value = [0; 8];
        value[..6].copy_from_slice(&self.mac);
        value[6] = u8::from(self.mac != [0; 6]);
        value[7] = u8::from(self.addresses.sources().next().is_some());
        self.station.set(0, value, 0).map_err(|source| XskError::Map { map: "station", source })
    }

    /// Drops SYNs to one address beyond so many a second from now on, counted in windows of 17 ms; 0: none. Who is dropped is
    /// who comes late in a window. A predecessor's limit stays until this is called.
    ///
    /// # Errors
    ///
    /// [`XskError::Map`] when the kernel refuses.
    pub fn set_syn_limit(&mut self, per_second: u32) -> Result<(), XskError> {
        let window = (u64::from(per_second) << WINDOW_SHIFT).div_ceil(1_000_000_000);
        let most = u32::try_from(window).unwrap_or(u32::MAX);
        self.syn_limit.set(0, most, 0).map_err(|source| XskError::Map { map: "syn_limit", source })
    }

    /// Hands packets of `queue` to `socket`, which is bound or about to be bound to that queue of this interface.
    ///
    /// The entry goes away with the socket.
    ///
    /// # Errors
    ///
    /// [`XskError::TooManyQueues`], or [`XskError::Map`] when the kernel refuses.
    pub fn insert_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), XskError> {
        if queue >= MAX_QUEUES {
            return Err(XskError::TooManyQueues { queue });
        }
        self.xsks.set(queue, socket, 0).map_err(|source| XskError::Map { map: "xsks", source })
    }

    /// What the program has done so far, predecessors' time included; zeros if the kernel does not tell.
    #[must_use]
    pub fn counters(&self) -> SteeringCounters {
        let sum = |index: u32| self.counters.get(&index, 0).map_or(0, |values| values.iter().sum());
        SteeringCounters { redirected: sum(0), no_socket_dropped: sum(1), passed: sum(2), syn_flood_dropped: sum(3) }
    }

    /// Removes the steering program of `interface` and its maps, whoever attached it; returns whether there was anything.
    ///
    /// It returns when the interface has let go of the program. An interface that is gone leaves only pins to remove.
    ///
    /// # Errors
    ///
    /// [`XskError::Path`] when a pin cannot be removed, [`XskError::StillAttached`] when something else holds the link.
    pub fn detach(interface: &str, pin_dir: &Path) -> Result<bool, XskError> {
        let dir = interface_dir(pin_dir, interface);
        let pin = dir.join(LINK_PIN);
        let program = PinnedLink::from_pin(&pin).ok().and_then(|link| FdLink::from(link).info().ok());
        let mut found = remove(&pin)?;
        if let Some(program) = program {
            wait_detached(interface, program.program_id())?;
        }
        for (map, _) in MAPS {
            found |= remove(&dir.join(map))?;
        }
        match fs::remove_dir(&dir) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(found),
            Err(source) => Err(XskError::Path { action: "cannot remove", path: dir, source }),
        }
    }
}

/// Where the pins of `interface` are. A bpffs reserves dots, and interface names have no colons.
fn interface_dir(pin_dir: &Path, interface: &str) -> PathBuf {
    pin_dir.join(interface.replace('.', ":"))
}

fn check_kernel() -> Result<(), XskError> {
    match KernelVersion::current() {
        Ok(version) if version >= OLDEST_KERNEL => Ok(()),
        Ok(version) => Err(XskError::Kernel { found: format!("{version:?}") }),
        Err(error) => Err(XskError::Kernel { found: format!("(unknown: {error})") }),
    }
}

/// Removes the pins of maps that another version laid out otherwise, before the loader mistakes them for its own: it
/// then makes them anew. A program of that version keeps its maps until it is replaced.
fn remove_other_layouts(dir: &Path) -> Result<(), XskError> {
    for (map, layout) in MAPS {
        let path = dir.join(map);
        if !path.exists() {
            continue;
        }
        let wrap = |source| XskError::Map { map, source };
        let info = MapData::from_pin(&path).map_err(wrap)?.info().map_err(wrap)?;
        if [info.key_size(), info.value_size(), info.max_entries()] != layout {
            tracing::warn!(map, path = %path.display(), "a pinned map has another version's layout, making it anew");
            remove(&path)?;
        }
    }
    Ok(())
}

/// Puts `program` behind the pinned link in one step. `false` if there is no link, or it is not on this interface any
/// more (the interface was made anew since); a dead link's pin is then removed.
fn take_over(program: &mut Xdp, interface: &str, id: u32, pin: &Path) -> Result<bool, XskError> {
    if !pin.exists() {
        return Ok(false);
    }
    match replace_program(program, pin) {
        Ok(()) if link::attached(interface)?.is_some_and(|found| found.id == id) => return Ok(true),
        Ok(()) => tracing::warn!(interface, "the pinned link is on another interface; attaching anew"),
        Err(error) => tracing::warn!(interface, %error, "the pinned link is dead; attaching anew"),
    }
    remove(pin)?;
    Ok(false)
}

fn replace_program(program: &mut Xdp, pin: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let link: XdpLink = FdLink::from(PinnedLink::from_pin(pin)?).try_into()?;
    let id = program.attach_to_link(link)?;
    // The pin keeps the link; this process needs no descriptor of it.
    drop(program.take_link(id)?);
    Ok(())
}

fn attach_anew(program: &mut Xdp, interface: &str, index: u32, mode: AttachMode, pin: &Path) -> Result<(), XskError> {
    if let Some(foreign) = link::attached(interface)? {
        let name = program_name(foreign.id).unwrap_or_else(|| "(a name that takes CAP_SYS_ADMIN to be told)".into());
        return Err(XskError::ForeignProgram { interface: interface.into(), name, id: foreign.id });
    }
    let refused = |mode| move |source| XskError::Attach { interface: interface.into(), mode, source };
    let native = |program: &mut Xdp| attach_link(program, index, XdpMode::Driver, pin).map_err(refused("native"));
    let generic = |program: &mut Xdp| attach_link(program, index, XdpMode::Skb, pin).map_err(refused("generic"));
    match mode {
        AttachMode::Native => native(program),
        AttachMode::Generic => generic(program),
        AttachMode::Auto => native(program).or_else(|error| {
            tracing::warn!(interface, %error, "no native XDP, falling back to generic");
            generic(program)
        }),
    }
}

fn attach_link(
    program: &mut Xdp,
    index: u32,
    mode: XdpMode,
    pin: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let id = program.attach_to_if_index(index, mode)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

/// What the kernel calls a program. `None` without `CAP_SYS_ADMIN`, which it takes to find a program by its number.
pub(crate) fn program_name(id: u32) -> Option<String> {
    let mut programs = loaded_programs().peekable();
    if let Some(Err(ProgramError::SyscallError(error))) = programs.peek()
        && error.io_error.kind() == io::ErrorKind::PermissionDenied
    {
        return None;
    }
    let program = programs.flatten().find(|program| program.id() == id);
    let name = program.and_then(|program| program.name_as_str().map(str::to_owned)).filter(|name| !name.is_empty());
    Some(name.unwrap_or_else(|| "(unnamed)".into()))
}

fn remove(path: &Path) -> Result<bool, XskError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(XskError::Path { action: "cannot remove", path: path.into(), source }),
    }
}

/// Waits until `interface` has let go of `program`: the kernel releases a pinned link only after an RCU grace period.
fn wait_detached(interface: &str, program: u32) -> Result<(), XskError> {
    let deadline = Instant::now() + DETACH_DEADLINE;
    loop {
        match link::attached(interface) {
            Ok(Some(found)) if found.id == program => {}
            Ok(_) | Err(XskError::NoInterface(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Err(XskError::StillAttached { interface: interface.into(), id: program });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
