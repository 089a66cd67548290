//! The Lease by which a node says that it lives, which nodes it hears and which addresses it announces.
//!
//! It is a record for people and for what looks after the cluster: who announces what is settled without it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::access::Access;
use super::client::connect;
use super::lease::{Claim, Standing};

/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(10);
/// How long it lasts: two renewals may fail.
const LASTS: Duration = Duration::from_secs(40);

/// The Lease of one node.
pub struct NodeLease {
    access: Access,
    node: String,
    claim: Option<Claim>,
    /// What was said last of why it cannot be renewed.
    trouble: Option<String>,
}

impl NodeLease {
    /// `millrace-node-` and its name, in the namespace that the configuration of the client names: the pod's.
    #[must_use]
    pub fn new(access: &Access, node: &str) -> Self {
        Self { access: access.clone(), node: node.to_owned(), claim: None, trouble: None }
    }

    /// Renews it with these annotations. What fails is logged once; it is tried again by whoever calls this again.
    pub async fn renew(&mut self, annotations: BTreeMap<String, String>) {
        let trouble = match self.write(annotations).await {
            Ok(Standing::Held { .. }) => None,
            Ok(Standing::Of(other)) => Some(format!("{other} holds it")),
            Err(why) => {
                // Certificates and tokens may have been renewed.
                self.claim = None;
                Some(why)
            }
        };
        if trouble != self.trouble {
            match &trouble {
                Some(why) => tracing::warn!(node = self.node, "the Lease of this node cannot be renewed: {why}"),
                None => tracing::info!(node = self.node, "the Lease of this node is renewed again"),
            }
            self.trouble = trouble;
        }
    }

    async fn write(&mut self, annotations: BTreeMap<String, String>) -> Result<Standing, String> {
        let claim = match &mut self.claim {
            Some(claim) => claim,
            none => {
                let client = connect(&self.access).await?;
                let (namespace, name) = (client.default_namespace().to_owned(), format!("millrace-node-{}", self.node));
                none.insert(Claim::new(&client, &namespace, &name, &self.node, LASTS))
            }
        };
        let labels = BTreeMap::from([("app.kubernetes.io/name".to_owned(), "millrace".to_owned())]);
        claim.note(labels, annotations);
        claim.renew().await
    }
}
