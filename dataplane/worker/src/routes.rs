//! By which queue a frame leaves: one of the worker's own on that NIC, or another worker's.

use lb::PortId;

/// One worker's ways out, made once.
#[derive(Debug)]
pub(crate) struct Routes {
    ports: Vec<Way>,
    /// For each own queue, which of those on its NIC it is.
    ordinal: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Way {
    /// Own queues on the NIC.
    own: Vec<usize>,
    /// A worker that has one, where there is none.
    peer: Option<usize>,
}

impl Routes {
    /// For worker `id`, given the NICs that each worker's queues send on; `None` is a queue that only receives.
    pub(crate) fn new(id: usize, workers: &[Vec<Option<PortId>>]) -> Self {
        let count = workers.iter().flatten().flatten().map(|port| usize::from(port.0) + 1).max().unwrap_or(0);
        let mut ports = vec![Way::default(); count];
        let mut ordinal = Vec::with_capacity(workers[id].len());
        for (queue, port) in workers[id].iter().enumerate() {
            let Some(port) = port else {
                ordinal.push(queue);
                continue;
            };
            let own = &mut ports[usize::from(port.0)].own;
            ordinal.push(own.len());
            own.push(queue);
        }
        for (number, way) in ports.iter_mut().enumerate().filter(|(_, way)| way.own.is_empty()) {
            let has = |worker: &Vec<Option<PortId>>| worker.iter().flatten().any(|port| usize::from(port.0) == number);
            let peers: Vec<usize> = (0..workers.len()).filter(|&worker| has(&workers[worker])).collect();
            // Workers without a queue there spread over those with one.
            way.peer = (!peers.is_empty()).then(|| peers[id % peers.len()]);
        }
        Self { ports, ordinal }
    }

    /// The number by which frames that came in by `queue` pick one of several queues of an out port: a flow's frames
    /// leave in the order in which they came.
    #[inline]
    pub(crate) fn spread(&self, queue: usize) -> usize {
        self.ordinal[queue]
    }

    /// Its own queue for this NIC.
    #[inline]
    pub(crate) fn own(&self, port: PortId, spread: usize) -> Option<usize> {
        match self.ports.get(usize::from(port.0))?.own.as_slice() {
            [] => None,
            [only] => Some(*only),
            own => Some(own[spread % own.len()]),
        }
    }

    /// The worker that sends on this NIC for it, where it has no queue there.
    #[inline]
    pub(crate) fn peer(&self, port: PortId) -> Option<usize> {
        self.ports.get(usize::from(port.0))?.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(numbers: &[u8]) -> Vec<Option<PortId>> {
        numbers.iter().map(|number| Some(PortId(*number))).collect()
    }

    #[test]
    fn a_queue_that_only_receives_is_no_way_out() {
        let workers = [vec![Some(PortId(0)), None, Some(PortId(0))], vec![None]];
        let first = Routes::new(0, &workers);
        for spread in 0..4 {
            assert_ne!(first.own(PortId(0), spread), Some(1));
        }
        let second = Routes::new(1, &workers);
        assert_eq!((second.own(PortId(0), second.spread(0)), second.peer(PortId(0))), (None, Some(0)));
    }

    #[test]
    fn an_own_queue_comes_before_another_workers() {
        let workers = [ports(&[0, 1, 1]), ports(&[0])];
        let first = Routes::new(0, &workers);
        assert_eq!((first.own(PortId(0), 5), first.peer(PortId(0))), (Some(0), None));
        assert_eq!((first.own(PortId(1), 0), first.own(PortId(1), 1)), (Some(1), Some(2)));
        assert_eq!((first.spread(0), first.spread(1), first.spread(2)), (0, 0, 1));
        let second = Routes::new(1, &workers);
        assert_eq!((second.own(PortId(1), 0), second.peer(PortId(1))), (None, Some(0)));
    }

    #[test]
    fn a_port_without_queues_has_no_way_out() {
        let routes = Routes::new(0, &[ports(&[2])]);
        for port in [0, 1, 3, 255] {
            assert_eq!((routes.own(PortId(port), 0), routes.peer(PortId(port))), (None, None));
        }
    }

    #[test]
    fn workers_without_a_queue_spread_over_those_with_one() {
        let workers = [ports(&[0]), ports(&[0]), ports(&[]), ports(&[])];
        assert_eq!(Routes::new(2, &workers).peer(PortId(0)), Some(0));
        assert_eq!(Routes::new(3, &workers).peer(PortId(0)), Some(1));
    }
}
