//! A control plane, and a node with one wire to it and one to where endpoints would be.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use millrace_tests::kubelab::Kubelab;
use millrace_tests::lab::{Host, Lab, Process};
use millrace_tests::millrace::{Gateway, Metrics};
use millrace_tests::wait::eventually;

/// How long a change may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// How long nobody is asked after a change was written: who asks takes the core from what is measured.
const UNDISTURBED: Duration = Duration::from_millis(250);
/// How many `kubectl` make objects at once.
const AT_ONCE: usize = 10;
/// Services' addresses begin here, endpoints' there.
const SERVICES: u32 = u32::from_be_bytes([10, 200, 0, 0]);
const ENDPOINTS: u32 = u32::from_be_bytes([10, 240, 0, 0]);

/// All of it.
pub struct Site {
    kubelab: Kubelab,
    gateway: Gateway,
    endpoints: usize,
    services: usize,
    /// How many changes were made.
    changes: usize,
    /// Owns the namespaces: dropped last.
    _hosts: [Host; 2],
    _lab: Lab,
}

/// A running `millrace`, ended when it is dropped.
pub struct Instance(Process);

impl Site {
    /// Makes it, and so many Services with so many endpoints each.
    ///
    /// # Panics
    /// If the system, or the API server, refuses.
    pub fn new(services: usize, endpoints: usize) -> Self {
        let mut lab = Lab::new("watch");
        let kubelab = Kubelab::start(&mut lab, &["--max-requests-inflight=2000"]);
        let (node, router) = (lab.host("node"), lab.host("router"));
        lab.wire((&node, "eth0"), (&router, "eth0"), 1);
        node.address("eth0", "10.82.1.1/24");
        router.address("eth0", "10.82.1.11/24");
        node.route("10.240.0.0/12 via 10.82.1.11");
        kubelab.wire(&lab, &node, "api0", "10.77.0.2");
        std::thread::scope(|scope| {
            for first in 0..AT_ONCE {
                let kubelab = &kubelab;
                let texts = (first..services).step_by(AT_ONCE).map(move |n| service(n, endpoints));
                scope.spawn(move || {
                    let text: String = texts.collect();
                    if !text.is_empty() {
                        kubelab.create(&text);
                    }
                });
            }
        });
        let config = format!(
            "interfaces: [eth0]\nkubernetes: {{kubeconfig: {}}}\nannounce: [{{mode: none}}]\n\
             externalIPs: [10.200.0.0/16]\nnode: {{hostname: n1}}\nsnat: {{addresses: [10.82.1.100]}}\n",
            kubelab.kubeconfig().display()
        );
        let gateway = Gateway::new(&node, lab.dir(), &config);
        Self { kubelab, gateway, endpoints, services, changes: 0, _hosts: [node, router], _lab: lab }
    }

    /// Starts Millrace and waits until it is ready; gives how long that took.
    ///
    /// # Panics
    /// With its log, if it does not come up, or does not serve everything.
    pub fn start(&mut self) -> (Instance, Duration) {
        let begun = Instant::now();
        let process = self.gateway.start();
        let took = begun.elapsed();
        let serving = self.gateway.json(&["services"]);
        let serving =
            serving.as_array().expect("a list").iter().filter(|service| service["notServed"].is_null()).count();
        assert!(serving >= self.services, "{serving} of {} Services are served", self.services);
        (Instance(process), took)
    }

    /// Ends it.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(&self, instance: Instance) {
        drop(instance);
        let output = self.gateway.admin(&["stop"]);
        assert!(output.status.success(), "millrace stop: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Changes an endpoint, and gives how long that took from the watch event to tables in force.
    ///
    /// # Panics
    /// If it does not come into force.
    pub fn change(&mut self) -> Duration {
        // One goes, and the next change brings it back.
        let (pair, ready) = (self.changes / 2, self.changes % 2 == 1);
        self.changes += 1;
        let name = format!("s{}", pair * 97 % self.services);
        let endpoint = pair % self.endpoints;
        let generation = self.gateway.json(&["status"])["generation"].as_u64();
        let (count, sum) = updates(&self.gateway.metrics());
        let patch =
            format!("[{{\"op\":\"replace\",\"path\":\"/endpoints/{endpoint}/conditions/ready\",\"value\":{ready}}}]");
        self.kubelab.kubectl(&["patch", "endpointslice", &name, "--type=json", "-p", &patch]);
        std::thread::park_timeout(UNDISTURBED);
        // Metrics of so many endpoints take a core for a while: not to be asked for before the change is over.
        eventually("a change is in force", SOON, || {
            let now = self.gateway.json(&["status"])["generation"].as_u64();
            if now > generation { Ok(()) } else { Err(format!("tables of generation {now:?}")) }
        });
        let (after, took) = eventually("a change is counted", SOON, || {
            let (after, took) = updates(&self.gateway.metrics());
            if after > count { Ok((after, took)) } else { Err(format!("{after} updates")) }
        });
        Duration::from_secs_f64((took - sum) / (after - count))
    }
}

/// How many changes came into force, and how many seconds they took together.
fn updates(metrics: &Metrics) -> (f64, f64) {
    (metrics.sum("millrace_update_seconds_count", ""), metrics.sum("millrace_update_seconds_sum", ""))
}

impl Instance {
    /// The most memory that was resident, in 10^6 octets.
    ///
    /// # Panics
    /// If it does not run.
    pub fn peak_memory(&self) -> f64 {
        self.0.memory("VmHWM") as f64 / 1e6
    }
}

/// A Service without a selector, and its slice as the controllers write one: a document of JSON each.
fn service(number: usize, endpoints: usize) -> String {
    let address = Ipv4Addr::from(SERVICES + 1 + number as u32);
    let mut text = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{number}"}},"spec":{{"externalIPs":["{address}"],"ports":[{{"port":80}}]}}}}
{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"s{number}","labels":{{"kubernetes.io/service-name":"s{number}","endpointslice.kubernetes.io/managed-by":"bench"}}}},"addressType":"IPv4","ports":[{{"port":8080}}],"endpoints":["#
    );
    for endpoint in 0..endpoints {
        let at = number * endpoints + endpoint;
        let (comma, address) = (if endpoint == 0 { "" } else { "," }, Ipv4Addr::from(ENDPOINTS + 1 + at as u32));
        write!(
            text,
            r#"{comma}{{"addresses":["{address}"],"nodeName":"n{}","conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","name":"s{number}-{endpoint}","namespace":"default"}}}}"#,
            at % 200
        )
        .expect("memory");
    }
    text + "]}\n"
}
