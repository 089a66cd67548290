//! Each kind/namespace/name once: of sound objects that claim one, the file that had it before keeps it.
//!
//! Only sound objects hold a name, so a faulty one can take none; without a former holder the first by path and line has
//! it. Source: SERVICES.md, "Without an API server" and "Errors".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::key;
use super::kinds::Kind;
use crate::finding::{Finding, Severity};
use crate::given::{Given, object_key};
use crate::objects::Located;

/// An object with errors.
#[derive(Debug)]
pub(super) struct Unsound {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub at: Located<()>,
}

/// Who has which name.
pub(super) struct Names<'n> {
    pub given: &'n Given,
    pub unsound: Vec<&'n Unsound>,
    pub findings: &'n mut Vec<Finding>,
    /// Whether some name was claimed twice.
    pub disputed: bool,
}

impl Names<'_> {
    /// Leaves one object of each name, and says of the others where it is.
    pub fn settle<T>(&mut self, kind: Kind, objects: &mut Vec<Arc<Located<T>>>, metadata: fn(&T) -> &ObjectMeta) {
        let mut claims: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        for (index, located) in objects.iter().enumerate() {
            claims.entry(key(metadata(&located.object))).or_default().push(index);
        }
        let mut unsound: BTreeMap<(&str, &str), Vec<&Located<()>>> = BTreeMap::new();
        for other in self.unsound.iter().filter(|other| other.kind == kind) {
            unsound.entry((&other.namespace, &other.name)).or_default().push(&other.at);
        }
        let mut refused = BTreeSet::new();
        for ((namespace, name), indices) in &claims {
            let former = self.given.objects.get(&object_key(&format!("{kind:?}"), namespace, name));
            let had = |index: &&usize| former == Some(&objects[**index].file);
            let Some(&holder) = indices.iter().find(had).or(indices.first()) else { continue };
            let holder_place = objects[holder].place();
            for &index in indices.iter().filter(|&&index| index != holder) {
                self.findings.push(again(kind, namespace, name, &objects[index], &holder_place));
                self.disputed = true;
                refused.insert(index);
            }
            // The former holder, while it is faulty, is no second one.
            let others = unsound.get(&(namespace.as_str(), name.as_str())).into_iter().flatten();
            for at in others.filter(|at| former != Some(&at.file)) {
                self.findings.push(again(kind, namespace, name, at, &holder_place));
            }
        }
        let mut index = 0;
        objects.retain(|_| {
            index += 1;
            !refused.contains(&(index - 1))
        });
    }
}

fn again<T>(kind: Kind, namespace: &str, name: &str, at: &Located<T>, holder: &str) -> Finding {
    let what = format!("{kind:?} {namespace}/{name}");
    let place = at.place();
    let message = format!("{what} a second time, expected each name once (first at {holder}, again at {place})");
    at.finding(Severity::Error, "metadata.name", message)
}
