//! Judging what was gathered, with what was good before in place of what is not now.

use std::collections::BTreeSet;
use std::sync::Arc;

use translate::{Context, Finding, Given, Objects, Source, Translation};

use super::{Gathered, LastGood, Texts};

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
    /// For the next time.
    pub former: Former,
}

/// What was read and translated before, for what is the same to be taken from there.
#[derive(Clone, Debug)]
pub struct Former {
    read: translate::Read,
    translated: translate::Former,
}

fn sources(texts: &Texts) -> Vec<Source> {
    texts.iter().map(|(path, text)| Source { path: Arc::clone(path), text: Arc::clone(text) }).collect()
}

fn once(
    former: Option<&Former>,
    texts: &Texts,
    context: &Context,
    given: &Given,
) -> (Former, Translation, Vec<Finding>) {
    let read = translate::read_after(former.map(|former| &former.read), &sources(texts), given);
    let translated = former.map(|former| &former.translated);
    let (translation, translated) = translate::translate_after(translated, &read.objects, context, given);
    let mut findings = read.findings.clone();
    findings.extend(translation.findings.iter().cloned());
    findings.sort();
    findings.dedup();
    (Former { read, translated }, translation, findings)
}

/// Judges the files as they are, and puts the last good text in the place of each that has an error, cannot be read or
/// only seems to be gone.
#[must_use]
pub fn judge(now: &Gathered, last_good: &LastGood, context: &Context, given: &Given) -> Judged {
    judge_after(None, now, last_good, (context, given))
}

/// The same, with what did not change taken from before.
#[must_use]
pub fn judge_after(
    former: Option<&Former>,
    now: &Gathered,
    last_good: &LastGood,
    (context, given): (&Context, &Given),
) -> Judged {
    let (mut texts, mut kept) = stand_in(now, last_good);
    let (mut former, mut translation, mut present) = once(former, &texts, context, given);
    // An older text's lines are not those of the file.
    let mut findings: Vec<Finding> = present.iter().filter(|finding| !kept.contains(&finding.file)).cloned().collect();
    findings.extend(now.findings(|file| texts.contains_key(file)));
    findings.sort();
    // Putting one back may set another at fault (two that claim the same); each file is put back once at most.
    let mut put_back = BTreeSet::new();
    loop {
        let faulty: BTreeSet<String> = present.iter().filter(|f| f.is_error()).map(|f| f.file.clone()).collect();
        let mut replaced = Vec::new();
        for file in faulty {
            if put_back.contains(&file) {
                continue;
            }
            if let (Some(good), Some(text)) = (last_good.0.get(file.as_str()), texts.get(file.as_str()))
                && good != text
            {
                replaced.push((file.clone(), Arc::clone(good)));
                kept.insert(file.clone());
                put_back.insert(file);
            }
        }
        if replaced.is_empty() {
            break;
        }
        for (file, good) in replaced {
            Arc::make_mut(&mut texts).insert(file.into(), good);
        }
        (former, translation, present) = once(Some(&former), &texts, context, given);
    }
    // What is back in force may be what another file claims as it is now.
    findings.extend(present.iter().filter(|finding| !kept.contains(&finding.file)).cloned());
    findings.sort();
    findings.dedup();
    let faulty: BTreeSet<&str> = present.iter().filter(|f| f.is_error()).map(|f| f.file.as_str()).collect();
    let mut good = LastGood(texts);
    for file in faulty {
        match last_good.0.get_key_value(file) {
            Some((path, text)) => drop(Arc::make_mut(&mut good.0).insert(Arc::clone(path), Arc::clone(text))),
            None => drop(Arc::make_mut(&mut good.0).remove(file)),
        }
    }
    let kept = kept.into_iter().collect();
    let objects = former.read.objects.clone();
    Judged { objects, translation, findings, kept, last_good: good, former }
}

/// The texts that stand for files now, and of which files they are older than the file.
fn stand_in(now: &Gathered, last_good: &LastGood) -> (Arc<Texts>, BTreeSet<String>) {
    let mut texts = Arc::clone(&now.texts);
    let older = |file: &str| now.troubles.contains_key(file) || now.is_lost(file);
    if now.troubles.is_empty() && now.lost.is_empty() {
        return (texts, BTreeSet::new());
    }
    let all = Arc::make_mut(&mut texts);
    for (file, good) in last_good.0.iter().filter(|(file, _)| older(file)) {
        all.entry(Arc::clone(file)).or_insert_with(|| Arc::clone(good));
    }
    let kept = texts.keys().filter(|file| older(file)).map(ToString::to_string).collect();
    (texts, kept)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Trouble;
    use super::*;

    const GOOD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: LoadBalancer\n  \
                        ports: [{port: 80}]\n---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets:\n\
                        - addresses: [{ip: 10.0.0.1}]\n  ports: [{port: 8080}]\n";

    fn context() -> Context {
        let pool = translate::Pool::new("p", vec!["192.0.2.0/28".parse().unwrap()]);
        Context { pools: vec![pool], ..Context::default() }
    }

    fn texts(files: &[(&str, &str)]) -> Gathered {
        let texts = files.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect();
        Gathered { texts: Arc::new(texts), ..Gathered::default() }
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
        let second = judge(&Gathered::default(), &first.last_good, &context(), &first.translation.given);
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
    fn a_newcomer_takes_the_name_of_nothing_in_force_faulty_or_sound_before_or_after_it() {
        let first = judge(&texts(&[("m.yaml", GOOD)]), &LastGood::default(), &context(), &Given::default());
        let given = &first.translation.given;
        let faulty = GOOD.replace("port: 80}", "poret: 80}");
        let clash = GOOD.replace("port: 80}", "port: 81}").replace("10.0.0.1", "10.0.0.2");
        for (newcomer, text) in [("a.yaml", &faulty), ("z.yaml", &faulty), ("a.yaml", &clash), ("z.yaml", &clash)] {
            for holder in [GOOD, &faulty] {
                let now = texts(&[("m.yaml", holder), (newcomer, text)]);
                let second = judge(&now, &first.last_good, &context(), given);
                assert_eq!(second.translation.desired, first.translation.desired, "{newcomer}: {text}");
                assert_eq!(second.last_good, first.last_good);
                let found = second.findings.iter().filter(|f| f.is_error() && f.file == newcomer);
                let said = found.map(ToString::to_string).collect::<Vec<_>>().join("\n");
                for what in ["Endpoints", "Service"] {
                    let expected = format!("{what} default/web a second time");
                    assert!(said.contains(&expected) && said.contains("(first at m.yaml:"), "{said}");
                }
                let third = judge(&now, &second.last_good, &context(), &second.translation.given);
                assert_eq!(third.translation.desired, first.translation.desired, "it goes on so");
            }
        }
        let moved = judge(&texts(&[("a.yaml", &clash)]), &first.last_good, &context(), given);
        assert!(moved.findings.iter().all(|f| !f.is_error()), "with its holder gone it is free");
        assert_eq!(moved.translation.services[0].source, "a.yaml:1");
    }

    #[test]
    fn a_file_in_trouble_or_lost_keeps_what_it_said_over_a_restart() {
        let first = judge(&texts(&[("m/a.yaml", GOOD)]), &LastGood::default(), &context(), &Given::default());
        let unreadable = Trouble::Unreadable(3, "the octet 0xe9 is no UTF-8".to_owned());
        let mut cases = vec![(Gathered::default(), "m", "gone")];
        cases[0].0.lost.insert(PathBuf::from("m"), "gone".to_owned());
        for (trouble, says) in [(Trouble::Empty, "delete the file"), (unreadable, "0xe9")] {
            let mut now = Gathered::default();
            now.troubles.insert("m/a.yaml".to_owned(), trouble);
            cases.push((now, "m/a.yaml", says));
        }
        for (now, file, says) in cases {
            let second = judge(&now, &first.last_good, &context(), &first.translation.given);
            assert_eq!(second.translation.desired, first.translation.desired, "{says}");
            assert_eq!((&second.last_good, second.kept.as_slice()), (&first.last_good, &["m/a.yaml".to_owned()][..]));
            let found: Vec<_> = second.findings.iter().filter(|f| f.is_error()).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].file == file && found[0].message.contains(says), "{found:?}");
        }
    }

    #[test]
    fn a_file_that_never_held_a_manifest_may_be_empty() {
        let mut now = Gathered::default();
        now.troubles.insert("notes.yaml".to_owned(), Trouble::Empty);
        assert_eq!(judge(&now, &LastGood::default(), &context(), &Given::default()).findings, []);
    }
}
