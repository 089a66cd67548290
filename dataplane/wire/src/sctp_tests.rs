use proptest::prelude::*;

use super::*;
use crate::frames::{self, Spec, crc_holds, sctp_frame};
use crate::{Port, Rewrite, parse, reply, rewrite};

const INIT_CHUNK: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 77, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];
const TAG_OF_INIT: u32 = 77;

fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let len = (value.len() + 4) as u16;
    let mut chunk = [&[kind, flags][..], &len.to_be_bytes(), value].concat();
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

fn data(len: usize) -> Vec<u8> {
    chunk(0, 3, &vec![0xd5; 12 + len])
}

fn chunks_of(tag: u32, chunks: &[u8]) -> Chunks {
    frames::transport(&sctp_frame(false, 1, 2, tag, chunks)).chunks
}

#[test]
fn chunks_that_open_or_end_an_association_are_told() {
    let sack = chunk(3, 0, &[0; 12]);
    for (tag, chunks, told) in [
        (0, INIT_CHUNK.to_vec(), Chunks::INIT),
        (5, chunk(2, 0, &INIT_CHUNK[4..]), Chunks::INIT_ACK),
        (5, [chunk(10, 0, b"cookie"), data(30)].concat(), Chunks::COOKIE_ECHO),
        (5, [chunk(11, 0, &[]), sack.clone()].concat(), Chunks::COOKIE_ACK),
        (5, [sack.clone(), chunk(7, 0, &[0; 4])].concat(), Chunks::SHUTDOWN),
        (5, chunk(8, 0, &[]), Chunks::SHUTDOWN_ACK),
        (5, chunk(14, 0, &[]), Chunks::SHUTDOWN_COMPLETE),
        (5, chunk(14, 1, &[]), Chunks::SHUTDOWN_COMPLETE.union(Chunks::REFLECTED)),
        (5, [chunk(9, 0, &[0; 8]), chunk(6, 0, b"why")].concat(), Chunks::ABORT),
        (5, chunk(6, 1, &[]), Chunks::ABORT.union(Chunks::REFLECTED)),
        (5, [sack, data(8)].concat(), Chunks::default()),
        (5, chunk(4, 0, &[0; 40]), Chunks::default()),
    ] {
        assert_eq!(chunks_of(tag, &chunks), told);
    }
}

#[test]
fn only_an_init_alone_without_a_tag_opens() {
    let opens = |tag, chunks: &[u8]| frames::transport(&sctp_frame(true, 1, 2, tag, chunks)).may_open();
    assert!(opens(0, &INIT_CHUNK));
    let mut none = INIT_CHUNK;
    none[7] = 0;
    for (tag, chunks) in [
        (9, INIT_CHUNK.to_vec()),
        (0, [&INIT_CHUNK[..], &data(4)].concat()),
        (0, [chunk(9, 0, &[]), INIT_CHUNK.to_vec()].concat()),
        (0, chunk(1, 0, &[0, 0, 0, 7])),
        (0, none.to_vec()),
        (0, data(4)),
        (0, chunk(2, 0, &INIT_CHUNK[4..])),
    ] {
        assert!(!opens(tag, &chunks), "{tag} {chunks:?}");
    }
}

#[test]
fn packets_that_contradict_themselves_are_refused() {
    for (chunks, error) in [
        (vec![], ParseError::Truncated),
        (vec![3, 0, 0], ParseError::Truncated),
        (vec![3, 0, 0, 3], ParseError::BadHeader),
        (vec![3, 0, 0, 0], ParseError::BadHeader),
        (vec![3, 0, 0, 8], ParseError::BadHeader),
        ([chunk(11, 0, &[]), vec![3, 0, 0, 16]].concat(), ParseError::BadHeader),
    ] {
        assert_eq!(parse(&sctp_frame(false, 1, 2, 3, &chunks)), Err(error), "{chunks:?}");
    }
    // What is too short for a chunk is padding.
    assert!(parse(&sctp_frame(false, 1, 2, 3, &[11, 0, 0, 4, 9, 9])).is_ok());
}

/// The new ports, by a rewrite of ports and addresses.
fn translated(frame: &[u8], ports: (u16, u16), mode: ChecksumMode) -> Vec<u8> {
    let (mut frame, t) = (frame.to_vec(), frames::transport(frame));
    let new = (t.dst, t.src, Port::new(ports.0), Port::new(ports.1));
    rewrite(&mut frame, &t, &Rewrite::new((t.src, t.dst, t.sport(), t.dport()), new), mode);
    frame
}

fn l4(v6: bool) -> usize {
    if v6 { 54 } else { 34 }
}

#[test]
fn a_crc_that_is_none_is_completed_from_virtual_devices_and_left_from_others() {
    for v6 in [false, true] {
        let mut frame = sctp_frame(v6, 1, 2, 3, &data(100));
        let at = l4(v6) + 8;
        frame[at..at + 4].fill(0);
        let t = frames::transport(&frame);
        assert!(crate::checksum::is_partial(&frame, &t) && !crate::checksum::is_right(&frame, &t));
        assert!(crc_holds(&translated(&frame, (7, 8), ChecksumMode::Virtual), l4(v6)));
        assert!(crc_holds(&translated(&frame, (1, 2), ChecksumMode::Virtual), l4(v6)), "the same ports");
        assert_eq!(translated(&frame, (7, 8), ChecksumMode::Incremental)[at..at + 4], [0; 4]);
    }
}

#[test]
fn packets_of_no_association_are_answered_as_section_8_4_says() {
    let abort = |flags| vec![6, flags, 0, 4];
    for (tag, chunks, answer) in [
        (0, INIT_CHUNK.to_vec(), Some((TAG_OF_INIT, abort(0)))),
        (9, INIT_CHUNK.to_vec(), Some((9, abort(1)))),
        (9, data(3), Some((9, abort(1)))),
        (9, chunk(10, 0, b"cookie"), Some((9, abort(1)))),
        (9, chunk(8, 0, &[]), Some((9, vec![14, 1, 0, 4]))),
        (9, chunk(6, 0, &[]), None),
        (9, chunk(14, 1, &[]), None),
        (9, chunk(11, 0, &[]), None),
        (0, data(3), None),
    ] {
        for v6 in [false, true] {
            let frame = sctp_frame(v6, 4000, 38412, tag, &chunks);
            let mut room = frame.clone();
            room.resize(2048, 0);
            let len = reply::sctp_out_of_the_blue(&mut room, &frames::transport(&frame));
            assert_eq!(len.is_some(), answer.is_some(), "{chunks:?}");
            let (Some(len), Some((tag, chunk))) = (len, &answer) else {
                assert_eq!(room[..frame.len()], frame);
                continue;
            };
            let t = frames::transport(&room[..len]);
            assert_eq!((t.sport().number(), t.dport().number(), t.verification_tag(&room)), (38412, 4000, *tag));
            let asked = frames::transport(&frame);
            assert_eq!((t.src, t.dst), (asked.dst, asked.src));
            assert_eq!(room[l4(v6) + 12..len], chunk[..]);
            assert!(crc_holds(&room[..len], l4(v6)));
        }
    }
}

#[test]
fn other_protocols_get_no_answer_of_sctp() {
    for spec in [Spec::v4(true), Spec::v6(false)] {
        let mut frame = spec.frame();
        let t = frames::transport(&frame);
        assert_eq!(reply::sctp_out_of_the_blue(&mut frame, &t), None);
    }
}

proptest! {
    #[test]
    fn crcs_after_a_rewrite_are_right_and_damage_is_carried_through(
        v6 in any::<bool>(), ports in any::<[u16; 4]>(), len in 0usize..1400, damage in any::<u32>(),
    ) {
        let [sport, dport, new_sport, new_dport] = ports;
        let mut frame = sctp_frame(v6, sport, dport, 3, &data(len));
        let after = translated(&frame, (new_sport, new_dport), ChecksumMode::Virtual);
        let t = frames::transport(&after);
        prop_assert_eq!((t.sport().number(), t.dport().number()), (new_sport, new_dport));
        prop_assert!(crc_holds(&after, l4(v6)) && crate::checksum::is_right(&after, &t));
        // Padding behind the packet is not covered.
        let mut padded = frame.clone();
        padded.extend([0xee; 9]);
        let cut = translated(&padded, (new_sport, new_dport), ChecksumMode::Incremental);
        prop_assert_eq!(&cut[..after.len()], &after[..]);
        // As wrong as before, by the same bits.
        let at = l4(v6) + 8;
        let word = |frame: &[u8]| u32::from_le_bytes(field::octets(frame, at));
        let damaged = word(&frame) ^ damage;
        prop_assume!(damaged != 0);
        frame[at..at + 4].copy_from_slice(&damaged.to_le_bytes());
        let carried = translated(&frame, (new_sport, new_dport), ChecksumMode::Virtual);
        prop_assert_eq!(word(&carried) ^ word(&after), damage);
    }

    #[test]
    fn chunks_of_any_content_never_panic(
        v6 in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..200),
        lens in prop::collection::vec((0u8..16, 0u8..24), 0..8),
    ) {
        let mut chunks = Vec::new();
        for (kind, len) in lens {
            chunks.extend([kind, 0, 0, len]);
            chunks.extend(vec![0; usize::from(len).saturating_sub(4).next_multiple_of(4)]);
        }
        chunks.extend(bytes);
        let frame = sctp_frame(v6, 1, 2, 0, &chunks);
        if let Ok(crate::Packet::Transport(t)) = parse(&frame) {
            let _ = (t.payload_len(&frame), t.initiate_tag(&frame), t.may_not_be_fragmented(&frame));
            let mut room = [frame, vec![0; 200]].concat();
            let _ = reply::sctp_out_of_the_blue(&mut room, &t);
        }
    }
}
