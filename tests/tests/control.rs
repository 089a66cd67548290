//! What the control plane costs the packets: building a thousand Services stalls no worker, and an idle instance sleeps.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millrace_tests::lab::{Host, Process};
use millrace_tests::load::{self, Held, Outcome};
use millrace_tests::millrace::Gateway;
use millrace_tests::pulse::Pulse;
use millrace_tests::topology::Network;
use millrace_tests::wait::eventually;
use nix::unistd::{SysconfVar, sysconf};

const SERVICES: usize = 1000;
const ENDPOINTS: usize = 10;
/// Services of one manifest.
const A_FILE: usize = 20;
/// Changes that are made.
const TURNS: usize = 8;
const ECHO_VIP: &str = "10.81.1.101:7";
const END: Duration = Duration::from_secs(60);

/// Echoes on port 7777 of a host, a thread for each connection, until the test's process ends.
fn echo(host: &Host, address: SocketAddr) {
    let (ready, wait) = std::sync::mpsc::channel();
    host.within(move || {
        let listener = TcpListener::bind(address).expect("to listen");
        ready.send(()).expect("the test waits");
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            thread::spawn(move || {
                let mut one = [0];
                while stream.read_exact(&mut one).is_ok() && stream.write_all(&one).is_ok() {}
            });
        }
    });
    wait.recv_timeout(Duration::from_secs(5)).expect("the echo listens");
}

/// When an octet was due, and how long after that its echo was there.
type Echoed = (Instant, Duration);

/// Connections that send an octet each at a fixed rate, whatever happened to the one before: a stall is seen by all the
/// octets that were due in it.
struct Echoes {
    /// Until when octets are due, once that is known.
    ends: Arc<OnceLock<Instant>>,
    threads: Vec<JoinHandle<Result<Vec<Echoed>, String>>>,
}

impl Echoes {
    fn hold(client: &Host, target: SocketAddr, connections: usize, pace: Duration) -> Self {
        let ends = Arc::new(OnceLock::new());
        let held = (0..connections).map(|_| {
            let ends = Arc::clone(&ends);
            client.within(move || echoed(target, pace, &ends).map_err(|error| error.to_string()))
        });
        Self { threads: held.collect(), ends }
    }

    /// All that was echoed, late ones included.
    fn finish(self) -> Vec<Echoed> {
        let _ = self.ends.set(Instant::now());
        let all = self.threads.into_iter().map(|thread| thread.join().expect("a connection").expect("no reset"));
        all.flatten().collect()
    }
}

fn echoed(target: SocketAddr, pace: Duration, ends: &OnceLock<Instant>) -> std::io::Result<Vec<Echoed>> {
    let mut stream = TcpStream::connect_timeout(&target, END)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(END))?;
    let (mut all, mut due) = (Vec::new(), Instant::now());
    while ends.get().is_none_or(|ends| due < *ends) {
        while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            thread::park_timeout(rest);
        }
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        all.push((due, due.elapsed()));
        due += pace;
    }
    Ok(all)
}

/// Requests at a steady pace, a connection each, until told to stop.
fn steady(client: &Host, target: SocketAddr, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<Outcome>> {
    let (client, stop) = (client.clone(), Arc::clone(stop));
    thread::spawn(move || {
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            all.push(load::requests(&client, target, 4, 2));
            thread::park_timeout(Duration::from_millis(20));
        }
        all
    })
}

/// What the manifests are to say.
struct Fleet {
    /// How many endpoints each Service has.
    endpoints: Vec<usize>,
}

impl Fleet {
    /// A manifest of Services, each with an address and endpoints of its own on ports of the three backends.
    fn file(&self, number: usize) -> String {
        let mut text = String::new();
        for service in number * A_FILE..(number + 1) * A_FILE {
            text += &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: s{service}\n  annotations:\n    \
                 millrace.dev/addresses: 10.81.{}.{}\nspec:\n  type: LoadBalancer\n  ports:\n  - port: 80\n    \
                 targetPort: 8080\n---\napiVersion: v1\nkind: Endpoints\nmetadata:\n  name: s{service}\nsubsets:\n",
                4 + service / 250,
                1 + service % 250,
            );
            for endpoint in 0..self.endpoints[service] {
                let (address, port) = (11 + endpoint % 3, 1024 + (service * ENDPOINTS + endpoint) % 60_000);
                text += &format!("- addresses: [{{ip: 10.82.1.{address}}}]\n  ports: [{{port: {port}}}]\n");
            }
            text += "---\n";
        }
        text
    }

    fn write(&self, gateway: &Gateway, files: impl IntoIterator<Item = usize>) {
        for number in files {
            gateway.manifest(&format!("fleet-{number}.yaml"), &self.file(number));
        }
    }

    fn total(&self) -> usize {
        self.endpoints.iter().sum()
    }
}

/// Waits until the tables in force have so many endpoints, and says when and in which generation.
fn await_endpoints(gateway: &Gateway, endpoints: usize) -> (Instant, u64) {
    eventually("a change is in force", END, || {
        let status = gateway.json(&["status"]);
        let now = Instant::now();
        let generation = status["generation"].as_u64().unwrap_or(0);
        if status["endpoints"] == endpoints { Ok((now, generation)) } else { Err(status.to_string()) }
    })
}

/// From when to when, and for how long the machine stood meanwhile.
type Span = (Instant, Instant, Duration);

/// The worst latency of what was due in each span, but for what is the machine's.
fn worst_of(spans: &[Span], echoed: &[Echoed]) -> Vec<Duration> {
    let worst = |span: &Span| {
        let within = echoed.iter().filter(|(due, _)| (span.0..span.1).contains(due));
        within.map(|(_, latency)| latency.saturating_sub(span.2)).max().expect("something was due")
    };
    let mut all: Vec<Duration> = spans.iter().map(worst).collect();
    all.sort();
    all
}

fn p99_of(spans: &[Span], echoed: &[Echoed]) -> Duration {
    let within = echoed.iter().filter(|(due, _)| spans.iter().any(|span| (span.0..span.1).contains(due)));
    let mut all: Vec<Duration> = within.map(|(_, latency)| *latency).collect();
    all.sort();
    all[all.len() * 99 / 100]
}

/// Frames' stays so far, and how many of them were longer than 1 ms and 10 ms.
fn stays(gateway: &Gateway) -> [f64; 3] {
    let metrics = gateway.metrics();
    let bucket = |le: &str| metrics.sum("millrace_residence_seconds_bucket", &format!("le=\"{le}\""));
    let all = bucket("+Inf");
    [all, all - bucket("0.001"), all - bucket("0.01")]
}

/// Endpoints of the two Services that are there beside the fleet.
const OTHERS: usize = 12;

/// An instance that serves `default/web`, an echo at [`ECHO_VIP`] and a fleet.
fn serving_a_fleet(network: &Network) -> (Gateway, Process, Fleet) {
    network.client.route("10.81.4.0/22 via 10.81.1.1");
    let config = network.config("").replace("addresses: [10.81.1.96/28,", "addresses: [10.81.1.96/28, 10.81.4.0/22,");
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config);
    let web = network.manifest(&[1, 2, 3], &[]);
    let echo_service =
        web.replace("name: web", "name: echo").replace("10.81.1.100,fd81:1::100", "10.81.1.101,fd81:1::101");
    let echo_service = echo_service.replace("port: 80\n", "port: 7\n").replace("8080", "7777");
    for (backend, number) in network.backends.iter().zip(1..) {
        echo(backend, SocketAddr::new(network.backend_address(number, false), 7777));
    }
    let fleet = Fleet { endpoints: vec![ENDPOINTS; SERVICES] };
    gateway.manifest("web.yaml", &web);
    gateway.manifest("echo.yaml", &echo_service);
    let process = gateway.start();
    fleet.write(&gateway, 0..SERVICES / A_FILE);
    await_endpoints(&gateway, fleet.total() + OTHERS);
    (gateway, process, fleet)
}

/// Spans without changes; asking for the status costs the same as it does between changes.
fn quiet_spans(gateway: &Gateway, fleet: &Fleet, held: &Held) -> Vec<Span> {
    let quiet = |_| {
        let (begun, pulse, answers) = (Instant::now(), Pulse::begin(), held.answered() + 100);
        while held.answered() < answers {
            await_endpoints(gateway, fleet.total() + OTHERS);
        }
        (begun, Instant::now(), pulse.longest())
    };
    (0..20).map(quiet).collect()
}

/// Changes one after the other, each in force before the next; prints how long that took.
fn changes(gateway: &Gateway, fleet: &mut Fleet) -> Vec<Span> {
    let (mut spans, mut generations) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        // Every fourth time each Service changes, else one endpoint comes or goes.
        let files = if turn % 4 == 3 {
            let count = if fleet.endpoints[0] == ENDPOINTS { ENDPOINTS - 1 } else { ENDPOINTS };
            fleet.endpoints.fill(count);
            0..SERVICES / A_FILE
        } else {
            let service = turn * 41;
            fleet.endpoints[service] = 2 * ENDPOINTS - 1 - fleet.endpoints[service];
            service / A_FILE..service / A_FILE + 1
        };
        let (begun, pulse, count) = (Instant::now(), Pulse::begin(), files.len());
        fleet.write(gateway, files);
        let (ended, generation) = await_endpoints(gateway, fleet.total() + OTHERS);
        println!("{count} of {} manifests changed: in force after {:?}", SERVICES / A_FILE, ended - begun);
        generations.push(generation);
        spans.push((begun, ended, pulse.longest()));
    }
    assert!(generations.is_sorted(), "{generations:?}");
    spans
}

#[test]
fn building_a_thousand_services_of_ten_endpoints_stalls_no_worker_and_breaks_nothing() {
    let network = Network::two_nics("fleet", 3, 1);
    let (gateway, process, mut fleet) = serving_a_fleet(&network);
    let stop = Arc::new(AtomicBool::new(false));
    let target = ECHO_VIP.parse().expect("an address");
    let echoes = Echoes::hold(&network.client, target, 12, Duration::from_millis(4));
    let requests = steady(&network.client, network.vip(false), &stop);
    let held = load::hold(&network.client, network.vip(false), 10, Duration::from_millis(50));
    held.await_each(END);

    let before = stays(&gateway);
    let quiet = quiet_spans(&gateway, &fleet, &held);
    let between = stays(&gateway);
    let spans = changes(&gateway, &mut fleet);
    let after = stays(&gateway);
    held.await_answers(20, END);
    stop.store(true, Ordering::Relaxed);
    let requests = requests.join().expect("the requests");
    let held = held.finish();
    let echoed = echoes.finish();

    let (idle, building) = (worst_of(&quiet, &echoed), worst_of(&spans, &echoed));
    for (what, spans, worst) in [("without", &quiet, &idle), ("with", &spans, &building)] {
        let (p99, typical, most) = (p99_of(spans, &echoed), worst[worst.len() / 2], worst.last());
        println!("echoes {what} builds: p99 {p99:?}; worst of a span: median {typical:?}, most {most:?}");
    }
    for (what, from, to) in [("without", before, between), ("with", between, after)] {
        let [all, ms1, ms10] = [0, 1, 2].map(|n| to[n] - from[n]);
        println!("stays {what} builds: {all} sampled, {ms1} longer than 1 ms, {ms10} longer than 10 ms");
    }
    print_size(&gateway, process.pid());

    let answered: u64 = requests.iter().map(|outcome| outcome.answered).sum();
    assert!(requests.iter().all(|outcome| outcome.failures.is_empty()), "requests failed: {requests:?}");
    assert!(held.failures.is_empty(), "established connections broke: {:?}", held.failures);
    println!("{answered} requests, {} answers and {} echoes on held connections", held.answered, echoed.len());
    // Not the worst of all: other processes of this machine may take a worker's core at times. A worker that waits for
    // builds does so in each.
    let (idle, building) = (idle[idle.len() / 2], building[building.len() / 2]);
    let most = idle + Duration::from_millis(40);
    assert!(building < most, "workers stall while tables are built: {building:?}, {idle:?}");
}

/// What an instance takes of memory and of the disk.
fn print_size(gateway: &Gateway, pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let rss = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    let file = fs::metadata(gateway.dir.join("run/flows")).expect("the flow file");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
    println!("{rss}; the flow file: {} octets, of which {blocks} are there", file.len());
}

/// Share of a core that a process took while `span` passed.
fn cpu_share(pid: u32, span: Duration) -> f64 {
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
        // utime and stime, the 14th and 15th; the second may have blanks, and ends at the last `)`.
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        rest.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().expect("ticks")).sum()
    };
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("ticks of a second") as f64;
    let (begun, before) = (Instant::now(), ticks());
    while let Some(rest) = span.checked_sub(begun.elapsed()).filter(|rest| !rest.is_zero()) {
        thread::park_timeout(rest);
    }
    (ticks() - before) as f64 / a_second / begun.elapsed().as_secs_f64()
}

#[test]
fn an_idle_instance_with_two_workers_sleeps_unless_told_to_be_busy() {
    let network = Network::two_nics("idle", 2, 2);
    let config = |idle: &str| network.config(&format!("workers: {{cores: [0, 1], idle: {idle}}}"));
    let mut gateway = Gateway::new(&network.gateway, network.lab.dir(), &config("adaptive"));
    gateway.manifest("web.yaml", &network.manifest(&[1, 2], &[]));
    let mut shares = Vec::new();
    for idle in ["adaptive", "busy"] {
        gateway.configure(&config(idle));
        let mut process = gateway.start();
        assert_eq!(load::requests(&network.client, network.vip(false), 20, 4).answered, 20);
        // Announcements and the like are over when it has a quiet second, if ever.
        let quiet = (0..10).map(|_| cpu_share(process.pid(), Duration::from_secs(1))).find(|share| *share < 0.02);
        // While a machine stands, its time is counted for whoever had the core: then it is looked again.
        let mut looks = 1..=5;
        let share = loop {
            let (look, share) = (looks.next(), cpu_share(process.pid(), Duration::from_secs(3)));
            let is_so = if idle == "busy" { share > 0.5 } else { share <= 0.02 };
            if is_so || look == Some(5) {
                break share;
            }
        };
        println!("idle: {idle}: {:.2} % of a core over 3 s (a second before: {quiet:?})", share * 100.0);
        shares.push(share);
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(process.wait(END).is_some(), "it does not end: {}", gateway.log_text());
    }
    assert!(shares[0] <= 0.02, "an idle instance takes {:.2} % of a core", shares[0] * 100.0);
    // Two workers that spin take two cores, or what other processes leave of them.
    assert!(shares[1] > 0.5, "busy workers take {:.2} % of a core: this test cannot tell", shares[1] * 100.0);
}
