//! Manifests: which files there are, what is in them, and what was in them when they were last sound.
//!
//! A file is all or nothing: while it has an error, what it said when it was last sound counts. A file that was never
//! sound contributes what is sound in it. A deleted file takes its objects along.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use notify::{RecursiveMode, Watcher};
use serde::{Deserialize, Serialize};
use translate::{Context, Finding, Given, Objects, Severity, Source, Translation};

/// Files by path, each with its text.
pub type Texts = BTreeMap<String, String>;

/// The texts that were sound when they were last read; kept under `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood(pub Texts);

/// Whether a file of a folder is a manifest: its name ends as one and is not hidden.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let named = path.extension().is_some_and(|e| ["yaml", "yml", "json"].contains(&e.to_string_lossy().as_ref()));
    !hidden && named
}

/// Reads files and folders (one level of folders deep and below, in order of names). What cannot be read is a finding.
#[must_use]
pub fn gather(paths: &[PathBuf]) -> (Texts, Vec<Finding>) {
    let (mut texts, mut findings) = (Texts::new(), Vec::new());
    for path in paths {
        gather_one(path, true, &mut texts, &mut findings);
    }
    (texts, findings)
}

fn gather_one(path: &Path, named: bool, texts: &mut Texts, findings: &mut Vec<Finding>) {
    let name = path.display().to_string();
    let mut unreadable = |error: &std::io::Error| {
        findings.push(Finding {
            file: name.clone(),
            line: 1,
            field: "file".to_owned(),
            message: format!("cannot be read ({error}), expected a file or folder of manifests"),
            severity: Severity::Error,
        });
    };
    if path.is_dir() {
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return unreadable(&error),
        };
        let mut inside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        inside.sort();
        for path in inside {
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            if !hidden && (path.is_dir() || is_manifest(&path)) {
                gather_one(&path, false, texts, findings);
            }
        }
        return;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => {
            texts.insert(name, text);
        }
        // A file of a folder may go while it is read.
        Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => unreadable(&error),
    }
}

/// What reading and translating gave.
#[derive(Debug)]
pub struct Judged {
    /// Sound objects and, of files with errors, those of their last good text.
    pub objects: Objects,
    /// What is to be done.
    pub translation: Translation,
    /// What is wrong with the files as they are now.
    pub findings: Vec<Finding>,
    /// Files whose last good text counts in place of what they say now.
    pub kept: Vec<String>,
    /// What counts as good from now on.
    pub last_good: LastGood,
}

fn sources(texts: &Texts) -> Vec<Source> {
    texts.iter().map(|(path, text)| Source { path: path.clone(), text: text.clone() }).collect()
}

fn once(texts: &Texts, context: &Context, given: &Given) -> (Objects, Translation, Vec<Finding>) {
    let (objects, mut findings) = translate::read(&sources(texts));
    let translation = translate::translate(&objects, context, given);
    findings.extend(translation.findings.iter().cloned());
    findings.sort();
    findings.dedup();
    (objects, translation, findings)
}

/// Judges the files as they are, and puts the last good text in the place of each that has an error.
#[must_use]
pub fn judge(now: &Texts, last_good: &LastGood, context: &Context, given: &Given) -> Judged {
    let (mut objects, mut translation, findings) = once(now, context, given);
    let mut texts = now.clone();
    let mut kept: Vec<String> = Vec::new();
    let mut present = findings.clone();
    // Putting one back may set another at fault (two that claim the same); each file is put back once at most.
    loop {
        let faulty: Vec<String> = present.iter().filter(|f| f.is_error()).map(|f| f.file.clone()).collect();
        let mut changed = false;
        for file in faulty {
            if kept.contains(&file) {
                continue;
            }
            if let (Some(good), Some(text)) = (last_good.0.get(&file), texts.get_mut(&file))
                && good != text
            {
                text.clone_from(good);
                kept.push(file);
                changed = true;
            }
        }
        if !changed {
            break;
        }
        (objects, translation, present) = once(&texts, context, given);
    }
    let mut good = LastGood::default();
    for (path, text) in &texts {
        let faulty = present.iter().any(|f| f.is_error() && f.file == *path);
        if !faulty {
            good.0.insert(path.clone(), text.clone());
        } else if let Some(former) = last_good.0.get(path) {
            good.0.insert(path.clone(), former.clone());
        }
    }
    kept.sort();
    Judged { objects, translation, findings, kept, last_good: good }
}

/// Watches files and folders; dropping it ends that.
pub struct Watch(#[expect(dead_code, reason = "watches for as long as it lives")] notify::RecommendedWatcher);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Calls `changed` after anything changed in these files and folders.
///
/// # Errors
/// If the kernel gives no watch.
pub fn watch(paths: &[PathBuf], changed: impl Fn() + Send + 'static) -> notify::Result<Watch> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; it must not lead to reading it again.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed();
        }
    })?;
    for path in paths {
        // An editor replaces a file by another of its name, which a watch on the file would not follow.
        let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new(".")) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let deep = if path.is_dir() { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
        watcher.watch(folder, deep)?;
    }
    Ok(Watch(watcher))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: LoadBalancer\n  \
                        ports: [{port: 80}]\n---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets:\n\
                        - addresses: [{ip: 10.0.0.1}]\n  ports: [{port: 8080}]\n";

    fn context() -> Context {
        let pool = translate::Pool { name: "p".into(), addresses: vec!["192.0.2.0/28".parse().unwrap()] };
        Context { pools: vec![pool], ..Context::default() }
    }

    fn texts(files: &[(&str, &str)]) -> Texts {
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_file_with_an_error_keeps_what_it_said_last() {
        let first = judge(&texts(&[("a.yaml", GOOD)]), &LastGood::default(), &context(), &Given::default());
        assert!(first.findings.iter().all(|f| !f.is_error()), "{:?}", first.findings);
        assert_eq!(first.translation.services.len(), 1);
        let broken = GOOD.replace("port: 80}", "poret: 80}");
        let second = judge(&texts(&[("a.yaml", &broken)]), &first.last_good, &context(), &first.translation.given);
        assert!(second.findings.iter().any(Finding::is_error));
        assert_eq!(second.kept, ["a.yaml"]);
        assert_eq!(second.translation.desired, first.translation.desired);
        assert_eq!(second.last_good, first.last_good);
    }

    #[test]
    fn a_deleted_file_takes_its_objects_along() {
        let first = judge(&texts(&[("a.yaml", GOOD)]), &LastGood::default(), &context(), &Given::default());
        let second = judge(&Texts::new(), &first.last_good, &context(), &first.translation.given);
        assert!(second.translation.services.is_empty());
        assert!(second.last_good.0.is_empty());
    }

    #[test]
    fn one_bad_file_takes_no_other_down() {
        let other = GOOD.replace("name: web", "name: other");
        let judged = judge(
            &texts(&[("a.yaml", "kind: [\n"), ("b.yaml", &other)]),
            &LastGood::default(),
            &context(),
            &Given::default(),
        );
        assert!(judged.findings.iter().any(|f| f.is_error() && f.file == "a.yaml"));
        assert_eq!(judged.translation.services.len(), 1);
    }

    #[test]
    fn folders_give_their_manifests_in_order_and_nothing_hidden() {
        let folder = std::env::temp_dir().join(format!("millrace-gather-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["b.yaml", "a.yml", ".c.yaml", "d.txt", "e.json"] {
            std::fs::write(folder.join(name), "{}").unwrap();
        }
        let (texts, findings) = gather(std::slice::from_ref(&folder));
        let names: Vec<_> = texts.keys().map(|p| p.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.yml", "b.yaml", "e.json"]);
        assert!(findings.is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(gather(&[folder]).1.len(), 1);
    }
}
