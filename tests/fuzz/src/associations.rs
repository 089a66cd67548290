//! SCTP associations through two workers, within VLAN tags or not: any chunks of either end, whole and damaged packets,
//! time, and endpoints that come and go.
//!
//! What must hold is what the golden tests' judge holds of any frame; besides, a frame is handed over once, and a packet
//! whose CRC was right goes on with a right one, computed bit by bit.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use lb::model::{EndpointState, Mode};
use lb::{PortId, Verdict};
use wire::{Priorities, Tags};

use crate::association::{
    Association, CLIENTS, ENDPOINTS, SCTPS, chunk, cookie_ack, cookie_echo, crcs, data, init, init_ack, with_sctp,
};
use crate::judge::judge;
use crate::rig::{INSIDE, Kind, OUTSIDE, ROOM, Rig, service_port};

const WORKERS: u8 = 2;
/// Steps of a run: inputs are short, and runs many.
const STEPS: usize = 64;
/// Those in which endpoints are reached by their own addresses, as the judge has it.
const MODES: [Mode; 2] = [Mode::Nat, Mode::Preserve];

/// Runs the steps that the input tells.
///
/// # Panics
/// Where something does not hold.
pub fn run(input: &[u8]) {
    let mut run = Run { rig: with_sctp(usize::from(WORKERS)), got: Vec::new() };
    // An input that ends ends the run.
    let _ = run.steps(&mut Unstructured::new(input));
}

struct Run {
    rig: Rig,
    /// What endpoints got.
    got: Vec<Association>,
}

impl Run {
    fn steps(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        self.change(input)?;
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.int_in_range(0..=9u8)? {
                0..=4 => self.client(input)?,
                5..=7 => self.endpoint(input)?,
                8 => self.wait(input)?,
                _ => self.change(input)?,
            }
        }
        Ok(())
    }

    /// A client says something.
    fn client(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let kind = *input.choose(&SCTPS)?;
        let opening = Association::opening(kind, input.int_in_range(1..=4)?);
        let packet = if input.ratio(1, 3)? { opening } else { opening.with(tag(input)?, chunks(input)?) };
        self.send(input, OUTSIDE, &packet)
    }

    /// An endpoint answers something that it got.
    fn endpoint(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.got.is_empty() {
            return Ok(());
        }
        let got = &self.got[input.choose_index(self.got.len())?];
        let packet = got.back(tag(input)?, chunks(input)?);
        self.send(input, INSIDE, &packet)
    }

    fn send(&mut self, input: &mut Unstructured<'_>, port: PortId, packet: &Association) -> Result<()> {
        let mut frame = packet.bytes();
        let is_whole = !input.ratio(1, 6)?;
        if !is_whole {
            let at = input.choose_index(frame.len())?;
            frame[at] = input.arbitrary()?;
        }
        let tags = *input.choose(&tags())?;
        frame.resize(frame.len() + tags.octets(), 0);
        let len = frame.len() - tags.octets();
        tags.put_on(Priorities::NONE, &mut frame, len).expect("there is room");
        let worker = input.int_in_range(0..=WORKERS - 1)?;
        let verdict = judge(&mut self.rig, worker, port, false, &frame);
        let (worker, handed) = match verdict {
            Verdict::HandOff(owner) => (owner.0, true),
            _ => (worker, false),
        };
        assert!(worker < WORKERS);
        // The same once more is a duplicate, which shows what is sent.
        let out = self.rig.process(worker, port, handed, &frame);
        assert!(!handed || !matches!(out.verdict, Verdict::HandOff(_)), "a frame goes round");
        if let Verdict::Tx(out_port) = out.verdict {
            self.look_at(out.frame, is_whole, out_port);
        }
        Ok(())
    }

    /// Looks at what was sent when a packet came, whole or damaged.
    fn look_at(&mut self, mut frame: Vec<u8>, is_whole: bool, port: PortId) {
        let (_, _, len) = Tags::take_off(&mut frame);
        frame.truncate(len);
        let protocol = if frame[12] == 0x86 { frame[20] } else { frame[23] };
        if !is_whole || protocol != wire::Protocol::SCTP.0 {
            return;
        }
        let (stated, right) = crcs(&frame);
        assert_eq!(stated, right, "the CRC was right");
        if port == INSIDE && self.got.len() < STEPS {
            self.got.push(Association::read(&frame));
        }
    }

    fn wait(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let milliseconds = *input.choose(&[1, 300, 3_000, 61_000, 301_000])?;
        self.rig.wait(Duration::from_millis(milliseconds));
        let now = self.rig.now;
        for worker in &mut self.rig.workers {
            while worker.housekeep(now, &self.rig.tables) {}
        }
        // What is due then goes to nobody else either, as the judge of the next frame sees.
        Ok(())
    }

    /// Endpoints come, drain and go; the mode changes.
    fn change(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mode = *input.choose(&MODES)?;
        let drains: bool = input.arbitrary()?;
        let gone = input.int_in_range(0..=4u8)?;
        let backends: Vec<u8> = (1..=3).filter(|n| gone != *n).collect();
        let of = |kind: Kind| {
            let mut port = service_port(kind, "web", &backends);
            port.mode = mode;
            if drains {
                port.endpoints[0].state = EndpointState::Draining;
            }
            port.into()
        };
        self.rig.desired.service_ports = SCTPS.map(of).to_vec().into();
        self.rig.rebuild();
        Ok(())
    }
}

fn tag(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match input.int_in_range(0..=3u8)? {
        0 => 0,
        1 => CLIENTS,
        2 => ENDPOINTS,
        _ => input.arbitrary()?,
    })
}

/// One chunk to three, as an end sends them or any.
fn chunks(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for _ in 0..input.int_in_range(1..=3u8)? {
        all.extend(match input.int_in_range(0..=7u8)? {
            0 => init(),
            1 => init_ack(),
            2 => cookie_echo(),
            3 => cookie_ack(),
            4 => data(usize::from(input.arbitrary::<u8>()?)),
            _ => {
                let (kind, flags, len) =
                    (input.int_in_range(0..=15)?, input.int_in_range(0..=1)?, input.int_in_range(0..=24)?);
                chunk(kind, flags, input.bytes(len.min(input.len()))?)
            }
        });
    }
    debug_assert!(all.len() < ROOM);
    Ok(all)
}

/// None, one, and two of them.
fn tags() -> [Tags; 3] {
    let customer = Tags::NONE.within(100, false).expect("there is room");
    [Tags::NONE, customer, customer.within(200, true).expect("there is room")]
}
