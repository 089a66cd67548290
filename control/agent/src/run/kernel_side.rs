//! The kernel port as an instance comes up with it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lb::PortId;
use tokio::sync::watch;

use super::RunError;
use crate::config::{Config, KernelPort};
use crate::host;
use crate::instance::Instance;
use crate::kernel_port::{self, LOOK};
use crate::netlink::{Link, Network, ToKernel};

/// Makes the kernel port, whose end of ours is the last of the interfaces, and follows the kernel with it.
pub(super) async fn bring_up(
    config: &Config,
    port: &KernelPort,
    nics: &[Link],
) -> Result<(Arc<Network>, watch::Receiver<u64>), RunError> {
    fs::create_dir_all(&config.runtime).map_err(|e| format!("runtime: {}: {e}", config.runtime.display()))?;
    let workers = host::cores(config, &nics.iter().map(host::queues).collect::<Vec<_>>()).len();
    let wanted = kernel_port::Wanted {
        addresses: &port.snat,
        queues: u32::try_from(workers).unwrap_or(1),
        mtu: nics.iter().map(|link| link.mtu).max().unwrap_or(1500),
    };
    let brings_back = kernel_port::make(&config.runtime, &wanted).await?;
    let to_kernel = ToKernel {
        port: PortId(u8::try_from(nics.len()).map_err(|_| "too many interfaces".to_owned())?),
        peer: kernel_port::KERNELS.to_owned(),
        families: port.families(),
        brings_back,
    };
    Ok(Network::start_with(&config.interface_names(), Some(to_kernel)).await.map_err(|e| e.to_string())?)
}

/// Keeps to what the kernel port's addresses and routes follow.
pub(super) fn follow(config: &Config, instance: &Arc<Instance>, changes: &watch::Receiver<u64>) {
    let Some(port) = &config.kernel_port else { return };
    let names = config.interface_names();
    let (network, runtime) = (Arc::clone(&instance.network), config.runtime.clone());
    let (changes, snat) = (changes.clone(), port.snat.clone());
    tokio::spawn(kernel_port::answer(network, changes, runtime, snat, names, LOOK, is_ours(instance)));
    let brings_back = instance.network.to_kernel().is_some_and(|port| port.brings_back);
    tokio::spawn(kernel_port::keep(port.snat.clone(), brings_back, LOOK, is_ours(instance)));
    tokio::spawn(kernel_port::route(instance.inward.subscribe(), port.families(), LOOK, is_ours(instance)));
    if redirects(config) {
        tokio::spawn(kernel_port::redirect(instance.redirected.subscribe(), LOOK, is_ours(instance)));
    }
}

/// Whether the kernel port is this instance's still: who waits for its end after a hand-over must not put anything back.
fn is_ours(instance: &Arc<Instance>) -> impl Fn() -> bool + Send + Sync + 'static + use<> {
    let instance = Arc::downgrade(instance);
    move || instance.upgrade().is_some_and(|instance| !instance.released.load(Ordering::Relaxed))
}

/// Whether NodePorts are reached from the host itself.
fn redirects(config: &Config) -> bool {
    config.kubernetes.is_some() && config.serve.node_port
}

/// Takes away what a predecessor's kernel port had and this one has not.
pub(super) async fn settle(config: &Config) {
    if let Some(port) = &config.kernel_port
        && let Err(error) = kernel_port::settle(&port.snat).await
    {
        tracing::warn!(%error, "addresses that a predecessor's kernel port had are routed into it still");
    }
    if config.kernel_port.is_some()
        && !redirects(config)
        && let Err(error) = kernel_port::redirect_nothing()
    {
        tracing::warn!(%error, "NodePorts of a predecessor are still redirected");
    }
}
