use std::sync::atomic::AtomicU32;

use wire::{MacAddr, Port, Protocol, Tags};

use super::*;
use crate::build::Ids;
use crate::flow::{Direction, FlowRef, FlowSpec};
use crate::id::{BackendId, PortId, ServiceId};
use crate::model::{Mode, Scope, ServicePortKey};
use crate::time::Tick;

const SNAT: [Addr; 2] = [Addr::from_v4([192, 0, 2, 10]), Addr::from_v4([192, 0, 2, 11])];

/// A folder of one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-flows-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(workers: usize) -> FlowFileConfig {
    FlowFileConfig {
        workers,
        flows: 256,
        services: 8,
        backends: 8,
        snat: SNAT.to_vec(),
        affinity_sources: 64,
        boot_id: [1; 16],
        secret: [7; 16],
        ..FlowFileConfig::default()
    }
}

fn spec(n: u16, mode: Mode, snat: Addr, snat_port: u16) -> FlowSpec {
    let client = (Addr::from_v4([10, 0, (n >> 8) as u8, n as u8]), Port::new(40_000));
    FlowSpec {
        protocol: Protocol::TCP,
        client,
        vip: (Addr::from_v4([203, 0, 113, 1]), Port::new(80)),
        snat: if mode == Mode::Nat { (snat, Port::new(snat_port)) } else { client },
        backend: (Addr::from_v4([172, 16, 0, 1]), Port::new(8080)),
        dispensable: false,
        mode,
        service: ServiceId::new(1, 0),
        backend_id: BackendId::new(2, 0),
        client_mac: MacAddr::UNKNOWN,
        client_nic: PortId(0),
        udp_timeout: None,
    }
}

/// Forty flows over four workers: a worker's own port blocks, and some without SNAT.
fn fill(opened: &mut Opened) -> Vec<(usize, FlowSpec)> {
    let workers = opened.tables.len();
    (0..40u16)
        .map(|n| {
            let worker = usize::from(n) % workers;
            let mode = if n % 5 == 0 { Mode::Preserve } else { Mode::Nat };
            let spec = spec(n, mode, SNAT[usize::from(n % 3 == 0)], 2048 + 64 * worker as u16 + n);
            let snat_port = if mode == Mode::Nat { port(worker, n) } else { spec.snat.1 };
            let spec = FlowSpec { snat: (spec.snat.0, snat_port), ..spec };
            opened.tables[worker].insert(&spec, Tick(5)).unwrap();
            (worker, spec)
        })
        .collect()
}

fn port(worker: usize, n: u16) -> Port {
    Port::new(2048 + 64 * worker as u16 + n)
}

fn flow_of(opened: &Opened, worker: usize, spec: &FlowSpec) -> Option<FlowRef> {
    let table = &opened.tables[worker];
    let found = [Direction::Forward, Direction::Reply].map(|d| table.lookup(table.hash(&spec.key(d)), &spec.key(d)));
    let [Some((flow, Direction::Forward)), Some((same, Direction::Reply))] = found else { return None };
    assert_eq!(flow, same);
    Some(flow)
}

fn assert_adopted(opened: &Opened, flows: &[(usize, FlowSpec)]) {
    let workers = opened.tables.len();
    assert_eq!((opened.adopted, opened.dropped, opened.discarded), (flows.len(), 0, None));
    for (worker, spec) in flows {
        let owner = worker % workers;
        assert!(flow_of(opened, owner, spec).is_some(), "{spec:?}");
        let id = WorkerId(owner as u8);
        if spec.mode == Mode::Nat {
            assert_eq!(opened.shared.blocks.owner_of(&spec.snat.0, spec.snat.1), Some(id));
        }
        let hash = |d| opened.tables[0].hash(&spec.key(d)).0;
        assert_eq!(opened.shared.directory.owner(hash(Direction::Forward)), Some(id));
        let reply = opened.shared.directory.owner(hash(Direction::Reply));
        assert_eq!(reply, (spec.mode == Mode::Preserve).then_some(id));
        assert_eq!(opened.shared.sources.count(&spec.client.0), 1);
    }
    assert_eq!(opened.shared.flows(), flows.len() as u64);
    assert_eq!(opened.shared.backend_connections(BackendId::new(2, 0)), flows.len() as u32);
}

#[test]
fn flows_go_on_with_the_same_and_with_another_number_of_workers() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(4)).unwrap();
    assert_eq!(opened.discarded, Some(Discarded::None));
    let mut flows = fill(&mut opened);
    let tags = |spec: &FlowSpec| Tags::NONE.within(1 + u16::from(spec.client.0.v4_octets()[3]), true).unwrap();
    for (worker, spec) in &flows {
        let flow = flow_of(&opened, *worker, spec).unwrap();
        opened.tables[*worker].entry_mut(flow).set_client_tags(tags(spec));
    }
    drop(opened);
    for workers in [4, 2, 3, 1, 4] {
        // Fresh randomness must not matter: the file's own secret stays.
        let again = FlowFile::open(&folder.0, &FlowFileConfig { secret: [9; 16], ..config(workers) }).unwrap();
        assert_adopted(&again, &flows);
        flows.iter_mut().for_each(|(worker, _)| *worker %= workers);
        for (worker, spec) in &flows {
            let flow = flow_of(&again, *worker, spec).unwrap();
            assert_eq!(again.tables[*worker].entry(flow).client_tags(), tags(spec));
        }
    }
}

#[test]
fn flows_go_on_with_other_limits() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    let flows = fill(&mut opened);
    drop(opened);
    let larger = FlowFileConfig { flows: 1000, services: 20, backends: 30, affinity_sources: 128, ..config(2) };
    assert_adopted(&FlowFile::open(&folder.0, &larger).unwrap(), &flows);
    assert_adopted(&FlowFile::open(&folder.0, &config(2)).unwrap(), &flows);
}

#[test]
fn removed_flows_and_those_whose_address_is_gone_do_not_come_back() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(1)).unwrap();
    let flows = fill(&mut opened);
    let first = flow_of(&opened, 0, &flows[1].1).unwrap();
    opened.tables[0].remove(first);
    drop(opened);
    let one_address = FlowFileConfig { snat: vec![SNAT[1]], ..config(1) };
    let again = FlowFile::open(&folder.0, &one_address).unwrap();
    let stay = |spec: &FlowSpec| spec.mode == Mode::Preserve || spec.snat.0 == SNAT[1];
    let staying = flows.iter().filter(|(_, spec)| stay(spec)).count();
    assert_eq!((again.adopted, again.dropped), (staying, 39 - staying));
    assert_eq!(flow_of(&again, 0, &flows[1].1), None);
    drop(again);
    let again = FlowFile::open(&folder.0, &one_address).unwrap();
    assert_eq!((again.adopted, again.dropped), (staying, 0), "what was dropped is gone for good");
}

#[test]
fn an_entry_that_was_not_committed_is_free_again() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(1)).unwrap();
    let flows = fill(&mut opened);
    let torn = flow_of(&opened, 0, &flows[3].1).unwrap();
    opened.tables[0].entries[torn.0 as usize].uncommit();
    // Another one whose keys are not those that its commit word was made of.
    let bent = flow_of(&opened, 0, &flows[4].1).unwrap();
    opened.tables[0].entries[bent.0 as usize].as_mut_bytes()[3] ^= 1;
    drop(opened);
    let mut again = FlowFile::open(&folder.0, &config(1)).unwrap();
    assert_eq!((again.adopted, again.dropped), (38, 1));
    assert_eq!(again.tables[0].insert(&flows[3].1, Tick(6)), Ok(torn.min_slot(bent)));
}

impl FlowRef {
    fn min_slot(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

#[test]
fn a_file_of_another_boot_or_layout_is_started_over() {
    let folder = Folder::new();
    let path = folder.0.join(NAME);
    let mut opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    let flows = fill(&mut opened);
    drop(opened);
    let rebooted = FlowFileConfig { boot_id: [2; 16], ..config(2) };
    let mut again = FlowFile::open(&folder.0, &rebooted).unwrap();
    assert_eq!((again.adopted, again.discarded), (0, Some(Discarded::OtherBoot)));
    assert_eq!(flow_of(&again, 0, &flows[0].1), None);
    fill(&mut again);
    drop(again);
    let octets_of_version = 8;
    File::options().write(true).open(&path).unwrap().write_all_at(&[99], octets_of_version).unwrap();
    let again = FlowFile::open(&folder.0, &rebooted).unwrap();
    assert_eq!((again.adopted, again.discarded), (0, Some(Discarded::OtherLayout)));
    drop(again);
    fs::write(&path, b"MILLFLOW cut short").unwrap();
    let again = FlowFile::open(&folder.0, &rebooted).unwrap();
    assert_eq!((again.adopted, again.discarded), (0, Some(Discarded::None)));
}

#[test]
fn a_move_that_was_cut_short_leaves_the_old_file() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    let flows = fill(&mut opened);
    drop(opened);
    fs::write(folder.0.join(NEW_NAME), b"MILLFLOW, half of a file").unwrap();
    assert_adopted(&FlowFile::open(&folder.0, &config(1)).unwrap(), &flows);
    assert!(!folder.0.join(NEW_NAME).exists());
}

#[test]
fn somebody_elses_file_is_refused_and_left_as_it_is() {
    for name in [NAME, NEW_NAME] {
        let folder = Folder::new();
        // The second opening has other sizes and would write the new file.
        if name == NEW_NAME {
            drop(FlowFile::open(&folder.0, &config(1)).unwrap());
        }
        let path = folder.0.join(name);
        fs::write(&path, "precious").unwrap();
        let opened = FlowFile::open(&folder.0, &config(2));
        assert!(matches!(&opened, Err(FlowFileError::Foreign { path: told }) if *told == path), "{name}: {opened:?}");
        let found = FlowFile::find(&folder.0);
        assert!(matches!(&found, Err(FlowFileError::Foreign { path: told }) if *told == path), "{name}: {found:?}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
    let folder = Folder::new();
    assert_eq!(FlowFile::find(&folder.0).unwrap(), Vec::<PathBuf>::new());
    fs::create_dir(folder.0.join(NAME)).unwrap();
    assert!(matches!(FlowFile::find(&folder.0), Err(FlowFileError::Foreign { .. })));
}

#[test]
fn flow_files_are_found_and_told_whether_they_are_in_use() {
    let folder = Folder::new();
    let opened = FlowFile::open(&folder.0, &config(1)).unwrap();
    assert!(FlowFile::in_use(&folder.0));
    drop(opened);
    assert!(!FlowFile::in_use(&folder.0));
    assert_eq!(FlowFile::find(&folder.0).unwrap(), [folder.0.join(NAME)]);
    // Killed right after making it.
    File::options().write(true).open(folder.0.join(NAME)).unwrap().set_len(0).unwrap();
    assert_eq!(FlowFile::find(&folder.0).unwrap(), [folder.0.join(NAME)]);
    assert_eq!(FlowFile::open(&folder.0, &config(1)).unwrap().discarded, Some(Discarded::None));
}

#[test]
fn a_second_user_is_refused_until_the_first_is_gone() {
    let folder = Folder::new();
    let mut opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    assert!(matches!(FlowFile::open(&folder.0, &config(2)), Err(FlowFileError::InUse { .. })));
    // A worker's table alone keeps it.
    let table = opened.tables.pop();
    drop(opened);
    assert!(matches!(FlowFile::open(&folder.0, &config(1)), Err(FlowFileError::InUse { .. })));
    drop(table);
    let moved = FlowFile::open(&folder.0, &config(1)).unwrap();
    assert!(matches!(FlowFile::open(&folder.0, &config(1)), Err(FlowFileError::InUse { .. })));
    drop(moved);
    FlowFile::open(&folder.0, &config(1)).unwrap();
}

#[test]
fn ids_and_affinity_outlive_the_process() {
    let folder = Folder::new();
    let key = |name: &str| ServicePortKey {
        namespace: "default".into(),
        name: name.into(),
        port_name: "http".into(),
        protocol: Protocol::TCP,
        ipv6: false,
        scope: Scope::All,
    };
    let address = Addr::from_v4([172, 16, 0, 1]);
    let ids = |opened: &mut Opened| {
        let service = opened.registry.service_id(&key("a")).unwrap();
        (service, opened.registry.backend_id(&key("a"), address, Port::new(80)).unwrap())
    };
    let mut opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    let gone = opened.registry.service_id(&key("gone")).unwrap();
    opened.registry.release_service(gone);
    let (service, backend) = ids(&mut opened);
    opened.shared.affinity.put(&address, service, backend, Tick(0), 1000);
    drop(opened);
    for workers in [2, 1] {
        let mut again = FlowFile::open(&folder.0, &config(workers)).unwrap();
        assert_eq!(
            again.registry.kept_backends().iter().map(|k| (k.id, k.port)).collect::<Vec<_>>(),
            [(backend, Port::new(80))]
        );
        assert_eq!(ids(&mut again), (service, backend));
        assert_eq!(again.shared.affinity.get(&address, service, Tick(5)), Some(backend));
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for config in [config(0), config(65), FlowFileConfig { flows: 0, ..config(1) }] {
        assert!(matches!(FlowFile::in_memory(&config), Err(FlowFileError::Sizes(_))));
    }
}

#[test]
fn the_room_of_a_file_is_taken_when_it_is_made() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    let _opened = FlowFile::open(&folder.0, &config(2)).unwrap();
    let metadata = fs::metadata(folder.0.join(NAME)).unwrap();
    assert!(metadata.blocks() * 512 >= metadata.len(), "{} of {} octets", metadata.blocks() * 512, metadata.len());
    assert!(!folder.0.join(NEW_NAME).exists());
}

#[test]
fn room_is_made_beside_a_file_in_use_and_given_back_if_it_is_not_used() {
    let folder = Folder::new();
    let running = FlowFile::open(&folder.0, &config(1)).unwrap();
    // Of the same sizes nothing is needed; of others a second file.
    drop(FlowFile::make_room(&folder.0, &config(1)).unwrap());
    assert!(!folder.0.join(NEW_NAME).exists());
    let mut room = FlowFile::make_room(&folder.0, &config(2)).unwrap();
    assert!(folder.0.join(NEW_NAME).exists());
    assert!(matches!(FlowFile::open_in(&mut room, &config(2)), Err(FlowFileError::InUse { .. })));
    drop(room);
    assert!(!folder.0.join(NEW_NAME).exists());
    drop(running);
    let mut room = FlowFile::make_room(&folder.0, &config(2)).unwrap();
    let opened = FlowFile::open_in(&mut room, &config(2)).unwrap();
    assert_eq!((opened.tables.len(), opened.discarded), (2, None));
    drop(room);
    assert!(!folder.0.join(NEW_NAME).exists() && folder.0.join(NAME).exists());
}

#[test]
fn a_file_larger_than_any_file_system_is_refused_with_what_to_do_and_leaves_nothing() {
    let folder = Folder::new();
    let huge = FlowFileConfig { flows: 64_000_000, workers: WorkerId::MAX, ..config(1) };
    let error = FlowFile::open(&folder.0, &huge).unwrap_err();
    assert!(matches!(error, FlowFileError::Room { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("64000000 flows") && text.contains("limits.flows"), "{text}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

/// One Service port with endpoints of these last octets.
fn desired(name: &str, hosts: std::ops::Range<u8>) -> crate::model::DesiredState {
    use crate::model::{Endpoint, ServicePort};
    let endpoint = |host| Endpoint::new(std::net::IpAddr::from([172, 16, 0, host]), 8080);
    let key = ServicePortKey::new("default", name, Protocol::TCP, false);
    let port = ServicePort { endpoints: hosts.map(endpoint).collect(), ..ServicePort::new(key, 80) };
    crate::model::DesiredState { service_ports: vec![port.into()].into(), addresses: Vec::new() }
}

#[test]
fn a_thousand_restarts_with_other_endpoints_each_leave_no_slot_of_a_former_one_taken() {
    use crate::tables::{Hop, Tables};
    let folder = Folder::new();
    // Eight slots of each kind, three endpoints at a time.
    for start in 0..1000u32 {
        let mut opened = FlowFile::open(&folder.0, &config(1)).unwrap();
        let registry = &mut opened.registry;
        let build_config = crate::build::BuildConfig {
            kept: registry.kept_backends(),
            kept_services: registry.kept_services(),
            ..Default::default()
        };
        let first = (start % 200) as u8;
        let desired = desired(&format!("web{}", start % 7), first..first + 3);
        let hop = |_| Hop::NO_ROUTE;
        let built = crate::build::build(None::<&Tables>, &desired, registry, &hop, &build_config);
        assert_eq!(built.refused, 0, "start {start}");
        assert_eq!((registry.kept_backends().len(), registry.kept_services().len()), (3, 1), "start {start}");
    }
}
