//! The table's questions at ClusterIPs and NodePorts, by the Service's name.

use millrace_tests::witness::Transport::{Tcp, Udp};

use super::shapes::{At, Outcome, Question, Saw, asked};
use super::world::From::{Chosen, Client, Node, Pod};

/// Why endpoints do not see the addresses of pods.
const TRANSLATED: &str = "what comes by the kernel port is translated";

/// From a pod at a ClusterIP: kube-proxy keeps its address.
fn kept(names: &'static str) -> Question {
    let translated = Outcome::All(names, Saw::Node);
    inside(asked(Pod, Outcome::All(names, Saw::Itself))).but(translated, TRANSLATED)
}

const fn inside(mut question: Question) -> Question {
    question.at = At::ClusterIp;
    question
}

const fn outer(mut question: Question) -> Question {
    question.at = At::NodePort;
    question
}

/// By the names of Services.
pub fn questions() -> Vec<(&'static str, Vec<Question>)> {
    let both = Outcome::All("l1 r1", Saw::Node);
    let (refused, silence) = (Outcome::Refused, Outcome::Silence);
    let hairpin = Outcome::All("l1 r1", Saw::Either);
    vec![
        (
            "dual-stack",
            vec![
                kept("l1 r1"),
                inside(asked(Chosen, hairpin)).but(both, TRANSLATED),
                inside(asked(Node, both)),
                inside(asked(Pod, refused)).by(Tcp, 81),
                inside(asked(Node, refused)).by(Tcp, 81),
                outer(asked(Client, both)),
                outer(asked(Pod, both)),
                outer(asked(Chosen, both)),
                outer(asked(Node, both)),
            ],
        ),
        ("dns", vec![kept("l1 r1").by(Udp, 53), kept("l1 r1").by(Tcp, 9153), outer(asked(Client, both)).by(Udp, 53)]),
        (
            "no-pods",
            vec![
                inside(asked(Pod, refused)),
                inside(asked(Node, refused)).by(Udp, 80),
                outer(asked(Client, refused)),
                outer(asked(Client, refused)).by(Udp, 80),
                outer(asked(Pod, refused)),
            ],
        ),
        ("unready", vec![inside(asked(Pod, refused))]),
        ("unready-published", vec![kept("l1 r1")]),
        ("terminating", vec![kept("l1 r1")]),
        ("ready-and-others", vec![kept("l1")]),
        ("hints", vec![kept("l1")]),
        ("hints-of-another-zone", vec![kept("r1 r2")]),
        ("same-node", vec![kept("l1")]),
        (
            "sticky",
            vec![
                inside(asked(Pod, Outcome::One("l1 r1", Saw::Itself)))
                    .but(Outcome::One("l1 r1", Saw::Node), TRANSLATED),
            ],
        ),
        (
            "local",
            vec![
                kept("l1 r1"),
                outer(asked(Client, Outcome::All("l1", Saw::Itself))),
                outer(asked(Pod, Outcome::All("l1 r1", Saw::Itself))).but(both, TRANSLATED),
                outer(asked(Node, both)),
            ],
        ),
        ("local-none-here", vec![kept("r1 r2"), outer(asked(Client, silence))]),
        ("local-none-at-all", vec![inside(asked(Pod, refused)), outer(asked(Client, refused))]),
        ("internal-local", vec![inside(asked(Pod, silence)), inside(asked(Node, silence))]),
        ("ranges-outside", vec![kept("l1 r1"), outer(asked(Client, both))]),
        ("by-hand", vec![kept("other"), inside(asked(Node, Outcome::All("other", Saw::Node)))]),
        ("another-class", vec![kept("l1 r1"), outer(asked(Client, both))]),
    ]
}
