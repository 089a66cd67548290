//! Files and folders as people and tools treat them, for real.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::settle::{Files, Manner, STEADY};
use super::*;

/// A folder that is removed at its end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("millrace-manifests-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("m")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Moves a whole file into place.
    fn replace(&self, name: &str, text: &str) {
        let part = self.path(".part");
        fs::write(&part, text).unwrap();
        fs::rename(part, self.path(name)).unwrap();
    }

    fn text(&self, gathered: &Gathered, name: &str) -> Option<String> {
        gathered.texts.get(self.path(name).display().to_string().as_str()).map(ToString::to_string)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A watch and what it told.
struct Followed {
    watch: Watch,
    changes: Receiver<()>,
}

impl Followed {
    fn new(paths: &[PathBuf]) -> Self {
        let (sender, changes) = channel();
        Self {
            watch: Watch::start(paths, move || {
                let _ = sender.send(());
            })
            .unwrap(),
            changes,
        }
    }

    /// Waits until what was gathered is so; how long that took, and all that was seen on the way.
    fn until(&self, what: &str, so: impl Fn(&Gathered) -> bool) -> (Duration, Vec<std::sync::Arc<Gathered>>) {
        let (begun, mut seen) = (Instant::now(), Vec::new());
        loop {
            let gathered = self.watch.gathered();
            let done = so(&gathered);
            seen.push(gathered);
            if done {
                return (begun.elapsed(), seen);
            }
            let left = Duration::from_secs(10).saturating_sub(begun.elapsed());
            assert!(self.changes.recv_timeout(left).is_ok(), "{what}: {:?}", seen.last());
        }
    }
}

/// Looks twice, long enough apart for anything to count.
fn settled(files: &mut Files, path: &Path) -> std::sync::Arc<Gathered> {
    let now = Instant::now();
    for later in [Duration::ZERO, STEADY, STEADY * 2] {
        files.take_in(&gather::walk(&[path.to_owned()]), now + later, Manner::Patient, &mut |_| {});
    }
    files.gathered()
}

#[test]
fn folders_give_their_manifests_in_order_and_nothing_hidden() {
    let temp = Temp::new("order");
    for name in ["b.yaml", "a.yml", ".c.yaml", "d.txt", "e.json"] {
        temp.write(&format!("m/{name}"), "{}");
    }
    let gathered = gather(&[temp.path("m")]);
    let names: Vec<_> = gathered.texts.keys().map(|p| p.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.yml", "b.yaml", "e.json"]);
    assert!(gathered.troubles.is_empty() && gathered.lost.is_empty());
    assert_eq!(gather(&[temp.path("none")]).lost.len(), 1);
    assert!(check_paths(&[temp.path("m")]).is_ok());
    assert!(check_paths(&[temp.path("m"), temp.path("none")]).unwrap_err().contains("none cannot be read"));
}

#[test]
fn a_watch_whose_thread_panics_says_that_it_has_ended() {
    let temp = Temp::new("panic");
    let watch = Watch::start(&[temp.path("m")], || panic!("as it should in this test")).unwrap();
    assert!(!watch.has_ended());
    temp.write("m/a.yaml", "{}");
    let begun = Instant::now();
    while !watch.has_ended() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it has not ended");
        std::thread::yield_now();
    }
}

#[test]
fn what_becomes_unreadable_keeps_its_text_and_says_why() {
    type Spoil = fn(&Temp);
    let cases: [(&str, Spoil, &str); 7] = [
        ("Latin-1", |t| t.write("m/a.yaml", b"kind: x\n# caf\xe9\n"), "0xe9 is no UTF-8"),
        ("emptied", |t| t.write("m/a.yaml", ""), ""),
        ("comments alone", |t| t.write("m/a.yaml", "---\n# nothing\n\n--- # more\n...\n"), ""),
        (
            "a link to nowhere",
            |t| {
                fs::remove_file(t.path("m/a.yaml")).unwrap();
                symlink("nowhere", t.path("m/a.yaml")).unwrap();
            },
            "cannot be read (No such file",
        ),
        (
            "a FIFO",
            |t| {
                fs::remove_file(t.path("m/a.yaml")).unwrap();
                nix::unistd::mkfifo(&t.path("m/a.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            },
            "a FIFO, expected",
        ),
        (
            "a device",
            |t| {
                fs::remove_file(t.path("m/a.yaml")).unwrap();
                symlink("/dev/zero", t.path("m/a.yaml")).unwrap();
            },
            "a device, expected",
        ),
        ("100 MB", |t| File::create(t.path("m/a.yaml")).unwrap().set_len(100 << 20).unwrap(), "split it"),
    ];
    for (what, spoil, why) in cases {
        let temp = Temp::new("spoil");
        temp.write("m/a.yaml", "good: 1\n");
        temp.write("m/b.yaml", "other: 1\n");
        let mut files = Files::default();
        settled(&mut files, &temp.path("m"));
        spoil(&temp);
        let gathered = settled(&mut files, &temp.path("m"));
        assert_eq!(temp.text(&gathered, "m/a.yaml").as_deref(), Some("good: 1\n"), "{what}");
        assert_eq!(temp.text(&gathered, "m/b.yaml").as_deref(), Some("other: 1\n"), "{what}");
        assert_eq!(gathered.troubles.len(), 1, "{what}");
        match gathered.troubles.values().next() {
            Some(Trouble::Empty) => assert_eq!(why, "", "{what}"),
            Some(Trouble::Unreadable(line, message)) => {
                assert!(!why.is_empty() && message.contains(why), "{what}: {message}");
                assert_eq!(*line, if what == "Latin-1" { 2 } else { 1 }, "{what}");
            }
            None => panic!("{what}"),
        }
        let _ = fs::remove_file(temp.path("m/a.yaml"));
        temp.write("m/a.yaml", "good: 2\n");
        let gathered = settled(&mut files, &temp.path("m"));
        assert_eq!(temp.text(&gathered, "m/a.yaml").as_deref(), Some("good: 2\n"), "{what}: repaired");
        assert!(gathered.troubles.is_empty(), "{what}: repaired");
    }
}

#[test]
fn a_folder_that_goes_is_lost_and_a_file_that_goes_is_deleted() {
    let temp = Temp::new("gone");
    temp.write("m/a.yaml", "a: 1\n");
    temp.write("m/b.yaml", "b: 1\n");
    let mut files = Files::default();
    let before = settled(&mut files, &temp.path("m"));
    fs::rename(temp.path("m"), temp.path("away")).unwrap();
    let gone = settled(&mut files, &temp.path("m"));
    assert_eq!(gone.texts, before.texts);
    assert!(gone.lost[&temp.path("m")].contains("cannot be read"), "{:?}", gone.lost);
    // As an unmounted folder looks.
    fs::create_dir(temp.path("m")).unwrap();
    let empty = settled(&mut files, &temp.path("m"));
    assert_eq!(empty.texts, before.texts);
    assert!(empty.lost[&temp.path("m")].contains("another folder than before"), "{:?}", empty.lost);
    fs::remove_dir(temp.path("m")).unwrap();
    symlink("nowhere", temp.path("m")).unwrap();
    assert_eq!(settled(&mut files, &temp.path("m")).texts, before.texts);
    fs::remove_file(temp.path("m")).unwrap();
    fs::rename(temp.path("away"), temp.path("m")).unwrap();
    fs::remove_file(temp.path("m/b.yaml")).unwrap();
    let back = settled(&mut files, &temp.path("m"));
    assert!(back.lost.is_empty());
    assert_eq!(temp.text(&back, "m/a.yaml").as_deref(), Some("a: 1\n"));
    assert_eq!(temp.text(&back, "m/b.yaml"), None);
    fs::remove_file(temp.path("m/a.yaml")).unwrap();
    assert_eq!(*settled(&mut files, &temp.path("m")), Gathered::default());
}

#[test]
fn links_in_a_circle_end_and_folders_through_links_are_read() {
    let temp = Temp::new("circle");
    fs::create_dir(temp.path("other")).unwrap();
    temp.write("other/a.yaml", "a: 1\n");
    symlink("../other", temp.path("m/linked")).unwrap();
    symlink("..", temp.path("m/up")).unwrap();
    symlink("self", temp.path("m/self")).unwrap();
    symlink("self.yaml", temp.path("m/self.yaml")).unwrap();
    let gathered = gather(&[temp.path("m")]);
    assert!(temp.text(&gathered, "m/linked/a.yaml").is_some());
    assert!(gathered.lost.values().any(|why| why.contains("in a circle")), "{:?}", gathered.lost);
    assert_eq!(gathered.troubles.len(), 1, "{:?}", gathered.troubles);
}

#[test]
fn a_slow_writer_is_waited_for_and_an_atomic_change_is_not() {
    let temp = Temp::new("slow");
    temp.write("m/a.yaml", "a: 1\n");
    let followed = Followed::new(&[temp.path("m")]);
    // Truncates, then adds a line at a time.
    let mut file = File::create(temp.path("m/a.yaml")).unwrap();
    for line in 0..20 {
        std::thread::park_timeout(Duration::from_millis(50));
        writeln!(file, "line{line}: 1").unwrap();
    }
    drop(file);
    let whole = |g: &Gathered| temp.text(g, "m/a.yaml").is_some_and(|text| text.contains("line19"));
    let (took, seen) = followed.until("the whole file", whole);
    assert!(took < STEADY, "closed, and taken in only after {took:?}");
    for gathered in &seen[..seen.len() - 1] {
        assert_eq!(temp.text(gathered, "m/a.yaml").as_deref(), Some("a: 1\n"), "part of it");
        assert!(gathered.troubles.is_empty());
    }
    let mut times = Vec::new();
    for turn in 0..20 {
        let text = format!("turn: {turn}\n");
        temp.replace("m/a.yaml", &text);
        times.push(followed.until("a replacement", |g| temp.text(g, "m/a.yaml").as_ref() == Some(&text)).0);
    }
    times.sort();
    assert!(times[10] < STEADY / 10, "{times:?}");
    println!("an atomic change is taken in after {:?}, at most {:?}", times[10], times[19]);
}

#[test]
fn saving_by_removal_and_writing_anew_is_no_deletion() {
    let temp = Temp::new("anew");
    temp.write("m/a.yaml", "a: 1\n");
    let followed = Followed::new(&[temp.path("m")]);
    fs::rename(temp.path("m/a.yaml"), temp.path("m/a.yaml~")).unwrap();
    temp.write("m/a.yaml", "a: 2\n");
    let new = |g: &Gathered| temp.text(g, "m/a.yaml").as_deref() == Some("a: 2\n");
    let (_, seen) = followed.until("what was written anew", new);
    assert!(seen.iter().all(|g| g.texts.len() == 1 && g.lost.is_empty()), "{seen:?}");
    // One name for another is one step.
    fs::rename(temp.path("m/a.yaml"), temp.path("m/b.yaml")).unwrap();
    let (_, seen) = followed.until("the new name", |g| temp.text(g, "m/b.yaml").is_some());
    assert!(seen[..seen.len() - 1].iter().all(|g| temp.text(g, "m/b.yaml").is_none()));
    assert_eq!(seen[seen.len() - 1].texts.len(), 1, "{seen:?}");
}

#[test]
fn a_config_map_volume_is_followed_through_its_links() {
    let temp = Temp::new("configmap");
    let revision = |number: u32| {
        let folder = format!("m/..{number}");
        fs::create_dir(temp.path(&folder)).unwrap();
        temp.write(&format!("{folder}/web.yaml"), format!("revision: {number}\n"));
        symlink(format!("..{number}"), temp.path("m/..data_tmp")).unwrap();
        fs::rename(temp.path("m/..data_tmp"), temp.path("m/..data")).unwrap();
    };
    revision(1);
    symlink("..data/web.yaml", temp.path("m/web.yaml")).unwrap();
    let followed = Followed::new(&[temp.path("m")]);
    let gathered = followed.watch.gathered();
    assert_eq!((gathered.texts.len(), temp.text(&gathered, "m/web.yaml").as_deref()), (1, Some("revision: 1\n")));
    for number in 2..4 {
        revision(number);
        let text = format!("revision: {number}\n");
        let (took, _) = followed.until("the new revision", |g| temp.text(g, "m/web.yaml").as_ref() == Some(&text));
        println!("a swapped link is followed after {took:?}");
        assert!(took < Duration::from_secs(3), "only the slow look saw it: {took:?}");
    }
    // In place, behind both links.
    temp.write("m/..3/web.yaml", "revision: 3b\n");
    followed.until("a change in place", |g| temp.text(g, "m/web.yaml").as_deref() == Some("revision: 3b\n"));
}

#[test]
fn what_is_swapped_appears_later_or_is_named_anew_is_followed() {
    let temp = Temp::new("swap");
    for (folder, text) in [("r1", "one: 1\n"), ("r2", "two: 1\n")] {
        fs::create_dir(temp.path(folder)).unwrap();
        temp.write(&format!("{folder}/a.yaml"), text);
    }
    symlink("r1", temp.path("current")).unwrap();
    let followed = Followed::new(&[temp.path("current"), temp.path("m")]);
    let holds = |name: &'static str, text: &'static str| {
        let temp = &temp;
        move |g: &Gathered| temp.text(g, name).as_deref() == Some(text)
    };
    assert!(holds("current/a.yaml", "one: 1\n")(&followed.watch.gathered()));
    symlink("r2", temp.path("new")).unwrap();
    fs::rename(temp.path("new"), temp.path("current")).unwrap();
    followed.until("the other folder behind the link", holds("current/a.yaml", "two: 1\n"));
    temp.replace("r2/a.yaml", "two: 2\n");
    followed.until("a change in the other folder", holds("current/a.yaml", "two: 2\n"));
    // A folder within, made later, with a file already in it.
    fs::create_dir_all(temp.path("m/later/deep")).unwrap();
    temp.write("m/later/deep/b.yaml", "b: 1\n");
    followed.until("a folder made later", holds("m/later/deep/b.yaml", "b: 1\n"));
    temp.replace("m/later/deep/b.yaml", "b: 2\n");
    followed.until("a change in it", holds("m/later/deep/b.yaml", "b: 2\n"));
    // The folder as a whole replaced by another, as a checkout does.
    fs::create_dir_all(temp.path("fresh")).unwrap();
    temp.write("fresh/c.yaml", "c: 1\n");
    fs::rename(temp.path("m"), temp.path("old")).unwrap();
    fs::rename(temp.path("fresh"), temp.path("m")).unwrap();
    followed.until("the folder in its place", holds("m/c.yaml", "c: 1\n"));
    temp.replace("m/c.yaml", "c: 2\n");
    followed.until("a change in that", holds("m/c.yaml", "c: 2\n"));
    // Other folders named by the configuration.
    followed.watch.follow(&[temp.path("r1")]);
    let gathered = followed.watch.gathered();
    assert_eq!(gathered.texts.len(), 1);
    assert!(holds("r1/a.yaml", "one: 1\n")(&gathered));
    temp.replace("r1/a.yaml", "one: 2\n");
    followed.until("a change in what was named anew", holds("r1/a.yaml", "one: 2\n"));
}

#[test]
fn without_events_a_look_finds_a_change_once_it_rests() {
    let temp = Temp::new("eventless");
    temp.write("m/a.yaml", "a: 1\n");
    let mut files = Files::default();
    let paths = [temp.path("m")];
    let begun = Instant::now();
    files.take_in(&gather::walk(&paths), begun, Manner::Eager, &mut |_| {});
    let mut look = |after: Duration| {
        let outcome = files.take_in(&gather::walk(&paths), begun + after, Manner::Patient, &mut |_| {});
        (outcome, temp.text(&files.gathered(), "m/a.yaml"))
    };
    temp.write("m/a.yaml", "a: 1\nb: 2\n");
    let (outcome, text) = look(Duration::from_secs(5));
    assert!(outcome.again.is_some() && !outcome.report);
    assert_eq!(text.as_deref(), Some("a: 1\n"));
    let (outcome, text) = look(Duration::from_secs(5) + STEADY);
    assert!(outcome.report);
    assert_eq!(text.as_deref(), Some("a: 1\nb: 2\n"));
}

#[test]
fn ten_thousand_files_are_read_and_followed_within_seconds() {
    let temp = Temp::new("many");
    for number in 0..10_000 {
        temp.write(&format!("m/{number}.yaml"), format!("number: {number}\n"));
    }
    let begun = Instant::now();
    let followed = Followed::new(&[temp.path("m")]);
    let first = begun.elapsed();
    assert_eq!(followed.watch.gathered().texts.len(), 10_000);
    temp.replace("m/5000.yaml", "number: x\n");
    let (took, _) = followed.until("one of many", |g| temp.text(g, "m/5000.yaml").as_deref() == Some("number: x\n"));
    println!("10,000 files are read in {first:?}, a change of one is taken in after {took:?}");
    assert!(first < Duration::from_secs(10) && took < Duration::from_secs(5), "{first:?} {took:?}");
}
