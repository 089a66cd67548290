//! Which number a Service port and an endpoint have: given once, kept over restarts in the flow file.
//!
//! A slot has the hash of its user's name, not the name. Its generation counts its users, so that a flow of a former
//! one is told from those of the present. Control thread only.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use arena::Slab;
use siphasher::sip128::{Hasher128, SipHasher13};
use wire::{Addr, Port};

use crate::build::{Ids, KeptBackend};
use crate::flow::RegistrySlot;
use crate::id::{BackendId, ServiceId};
use crate::model::{Scope, ServicePortKey};
use crate::shared::Shared;

/// Ids of Service ports and endpoints.
#[derive(Debug)]
pub struct Registry {
    services: Slots,
    backends: Slots,
    shared: Arc<Shared>,
}

/// One kind's slots and what is where.
#[derive(Debug)]
struct Slots {
    slots: Slab<RegistrySlot>,
    by_name: HashMap<u128, u32>,
    /// Freed longest ago first, so that a generation comes again as late as can be.
    free: VecDeque<u32>,
}

impl Slots {
    fn new(slots: Slab<RegistrySlot>) -> Self {
        let (mut by_name, mut free) = (HashMap::new(), VecDeque::new());
        for (i, slot) in slots.iter().enumerate() {
            let taken = slot.in_use != 0 && by_name.insert(slot.name(), i as u32).is_none();
            if !taken {
                free.push_back(i as u32);
            }
        }
        Self { slots, by_name, free }
    }

    /// The slot of a name and its generation, a new one where it has none.
    fn get(&mut self, name: u128, address: Addr, port: Port) -> Option<(u32, u16)> {
        if let Some(&at) = self.by_name.get(&name) {
            return Some((at, self.slots[at as usize].generation as u16));
        }
        let at = self.free.pop_front()?;
        let slot = &mut self.slots[at as usize];
        slot.in_use = 0;
        compiler_fence(Ordering::SeqCst);
        (slot.name_low, slot.name_high) = (name as u64, (name >> 64) as u64);
        (slot.address, slot.port) = (address, port);
        compiler_fence(Ordering::SeqCst);
        slot.in_use = 1;
        self.by_name.insert(name, at);
        Some((at, slot.generation as u16))
    }

    fn release(&mut self, at: usize, generation: u16) {
        let Some(slot) = self.slots.get_mut(at).filter(|s| s.in_use != 0 && s.generation as u16 == generation) else {
            return;
        };
        slot.in_use = 0;
        slot.generation = (slot.generation + 1) & 0xfff;
        self.by_name.remove(&slot.name());
        self.free.push_back(at as u32);
    }
}

impl Registry {
    pub(crate) fn new(services: Slab<RegistrySlot>, backends: Slab<RegistrySlot>, shared: Arc<Shared>) -> Self {
        Self { services: Slots::new(services), backends: Slots::new(backends), shared }
    }

    /// The endpoints in use, with those of adopted flows; for the first tables.
    #[must_use]
    pub fn kept_backends(&self) -> Vec<KeptBackend> {
        let used = self.backends.slots.iter().enumerate().filter(|(_, slot)| slot.in_use != 0);
        used.map(|(i, slot)| KeptBackend {
            id: BackendId::new(i as u32, slot.generation as u16),
            address: slot.address,
            port: slot.port,
        })
        .collect()
    }

    /// The Service ports that have an id; for the first tables.
    #[must_use]
    pub fn kept_services(&self) -> Vec<ServiceId> {
        let used = self.services.slots.iter().enumerate().filter(|(_, slot)| slot.in_use != 0);
        used.map(|(i, slot)| ServiceId::new(i as u32, slot.generation as u16)).collect()
    }

    /// What the workers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Ids for Registry {
    fn service_id(&mut self, key: &ServicePortKey) -> Option<ServiceId> {
        let (at, generation) = self.services.get(name(key, None), Addr::UNSPECIFIED, Port::new(0))?;
        Some(ServiceId::new(at, generation))
    }

    fn backend_id(&mut self, key: &ServicePortKey, address: Addr, port: Port) -> Option<BackendId> {
        let (at, generation) = self.backends.get(name(key, Some((address, port))), address, port)?;
        Some(BackendId::new(at, generation))
    }

    fn release_service(&mut self, id: ServiceId) {
        self.services.release(id.index(), id.generation());
        self.shared.reset_opened(id);
    }

    fn release_backend(&mut self, id: BackendId) {
        self.backends.release(id.index(), id.generation());
    }

    fn connections(&self, id: BackendId) -> u32 {
        self.shared.backend_connections(id)
    }
}

/// The stable 128-bit hash of a name. Its key is no secret: names come from manifests.
fn name(key: &ServicePortKey, endpoint: Option<(Addr, Port)>) -> u128 {
    let mut hasher = SipHasher13::new();
    for part in [&key.namespace, &key.name, &key.port_name] {
        hasher.write_u64((part.len() as u64).to_le());
        hasher.write(part.as_bytes());
    }
    let scope = match key.scope {
        Scope::All => 0,
        Scope::External => 1,
        Scope::Internal => 2,
    };
    hasher.write(&[key.protocol.0, u8::from(key.ipv6), scope, u8::from(endpoint.is_some())]);
    if let Some((address, port)) = endpoint {
        hasher.write(address.octets());
        hasher.write(&port.octets());
    }
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use wire::Protocol;

    use super::*;
    use crate::flow::{FlowFile, FlowFileConfig};

    fn key(name: &str) -> ServicePortKey {
        ServicePortKey {
            namespace: "default".into(),
            name: name.into(),
            port_name: String::new(),
            protocol: Protocol::TCP,
            ipv6: false,
            scope: Scope::All,
        }
    }

    fn registry(services: usize) -> Registry {
        let config = FlowFileConfig { services, backends: 4, flows: 16, ..FlowFileConfig::default() };
        FlowFile::in_memory(&config).unwrap().registry
    }

    #[test]
    fn a_name_keeps_its_id_until_it_is_released() {
        let mut registry = registry(4);
        let a = registry.service_id(&key("a")).unwrap();
        let b = registry.service_id(&key("b")).unwrap();
        assert_ne!(a, b);
        assert_eq!(registry.service_id(&key("a")), Some(a));
        registry.release_service(a);
        let again = registry.service_id(&key("a")).unwrap();
        assert_ne!(again, a);
        registry.release_service(a);
        assert_eq!(registry.service_id(&key("a")), Some(again), "an old id releases nothing");
    }

    #[test]
    fn a_slot_that_is_used_again_has_another_generation() {
        let mut registry = registry(1);
        let a = registry.service_id(&key("a")).unwrap();
        assert_eq!(registry.service_id(&key("b")), None, "no slot is left");
        registry.release_service(a);
        let b = registry.service_id(&key("b")).unwrap();
        assert_eq!((b.index(), b.generation()), (a.index(), a.generation() + 1));
    }

    #[test]
    fn an_endpoint_is_known_by_service_port_address_and_port() {
        let mut registry = registry(4);
        let address = Addr::from_v4([10, 0, 0, 1]);
        let one = registry.backend_id(&key("a"), address, Port::new(80)).unwrap();
        let two = registry.backend_id(&key("a"), address, Port::new(81)).unwrap();
        let three = registry.backend_id(&key("b"), address, Port::new(80)).unwrap();
        assert!(one != two && two != three && one != three);
        assert_eq!(registry.backend_id(&key("a"), address, Port::new(80)), Some(one));
        assert_eq!(registry.kept_backends().len(), 3);
        registry.release_backend(two);
        let kept: Vec<_> = registry.kept_backends().iter().map(|k| k.id).collect();
        assert_eq!(kept, [one, three]);
    }
}
