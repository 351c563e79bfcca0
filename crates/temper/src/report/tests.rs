//! The page as a whole: what it shows, what it survives, and that it is inert.

use std::fs;

use super::*;

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("temper-report-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(name: &str, files: &[(&str, String)]) -> Self {
        let dir = Self::new(name);
        for (file, text) in files {
            fs::write(dir.0.join(file), text).unwrap();
        }
        dir
    }

    fn page(&self) -> String {
        let path = write(&self.0).unwrap();
        assert_eq!(path, self.0.join("report.html"));
        let page = fs::read_to_string(path).unwrap();
        assert_well_formed(&page);
        page
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every tag is closed in order, and nothing is loaded or run.
fn assert_well_formed(page: &str) {
    let mut open = vec![];
    for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default()) {
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') || matches!(name, "!DOCTYPE" | "meta") => {}
            None => open.push(name),
        }
        assert!(!matches!(name, "script" | "link" | "img" | "iframe" | "object"), "{tag}");
        assert!(!tag.contains("href") && !tag.contains(" on"), "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
}

fn metrics() -> String {
    let sft = (0..40).map(|s| {
        let loss = 2.0 / f64::from(s + 1);
        format!(
            r#"{{"stage":"sft","step":{s},"loss":{loss},"learning_rate":0.001,"num_tokens":{},"odd/metric":{s}}}"#,
            s * 512
        )
    });
    let grpo = (0..3).map(|s| {
        format!(
            r#"{{"stage":"grpo","step":{s},"reward":0.{s},"rewards/verifier/mean":0.{s},"rewards/format/mean":1.0,"kl":null,"entropy":0.5}}"#
        )
    });
    sft.chain(grpo).collect::<Vec<_>>().join("\n") + "\n"
}

fn ledger() -> String {
    r#"{"stages":["start","sft"],"tasks":[{"id":"keep <it>","target":false,"metric":"accuracy"},{"id":"sort","target":true,"metric":"accuracy"},
        {"id":"text","target":false,"metric":"nll"}],
        "cells":[{"stage":"start","task":"sort","n":200,"accuracy":0.2,"low":0.15,"high":0.26,"pass_at_k":{"1":0.2,"4":0.4},"nll":null,"mean_length":8.0},
        {"stage":"sft","task":"sort","n":200,"accuracy":0.6,"low":0.53,"high":0.67,"pass_at_k":null,"nll":null,"mean_length":9.5},
        {"stage":"start","task":"keep <it>","n":200,"accuracy":0.9,"low":0.85,"high":0.93},
        {"stage":"sft","task":"keep <it>","n":200,"accuracy":0.89,"low":0.84,"high":0.93,"change":{"against":"start","mean":-0.01,"low":-0.04,"high":0.02}},
        {"stage":"start","task":"text","n":50,"accuracy":null,"low":1.8,"high":2.0,"nll":1.9},
        {"stage":"sft","task":"text","n":50,"accuracy":null,"low":2.1,"high":2.3,"nll":2.2,"change":{"against":"start","mean":0.3,"low":0.2,"high":0.4}}]}"#
        .to_owned()
}

fn rollouts() -> String {
    let line = |step: usize, i: usize| {
        format!(
            r#"{{"stage":"grpo","step":{step},"task":"t{i}","prompt":"<b>p{i}</b>","completion":"</pre><script>alert({i})</script>\u0000","reward":{i},"parts":{{"verifier":{i}}},"stop":"eos","n_tokens":{i}}}"#
        )
    };
    let steps = [0, 1, 2].into_iter().flat_map(|step| (0..6).map(move |i| line(step, i)));
    steps.collect::<Vec<_>>().join("\n") + "\n"
}

fn files() -> Vec<(&'static str, String)> {
    vec![
        ("recipe.toml", "name = \"a & b\"\n".to_owned()),
        ("env.json", r#"{"version":"0.1.0","threads":2,"models":{"policy":{"path":"models/tiny"}}}"#.to_owned()),
        ("metrics.jsonl", metrics()),
        (
            "timing.jsonl",
            html::concat(
                (0..40).map(|s| format!("{{\"stage\":\"sft\",\"step\":{s},\"wall_s\":0.5,\"tokens_per_s\":1000}}\n")),
            ),
        ),
        ("ledger.json", ledger()),
        ("rollouts.jsonl", rollouts()),
    ]
}

#[test]
fn a_whole_run_is_shown() {
    let page = Dir::with("whole", &files()).page();
    assert!(!page.contains("Not everything is here"));
    for shown in [
        "sft \u{2192} grpo (43 steps)",
        "20 s",
        "temper 0.1.0",
        "20.0% \u{2192} <strong>60.0%",
        "keep &lt;it&gt;",
        "\u{25B2} +40.0 points [+30.8, +48.6]",
        "\u{25CF} \u{2212}1.0 points [\u{2212}4.0, +2.0]",
        "\u{25BC} +0.300 [+0.200, +0.400]",
        "<strong>1 of 2</strong> kept",
        "pass@4 40.0%",
        "<h4>Reward</h4>",
        "part: format",
        "<h4>Loss</h4>",
        "<h4>odd/metric</h4>",
        "More metrics",
        "models.policy.path",
        "name = &quot;a &amp; b&quot;",
        "Step 0, the first",
        "Step 2, the last",
        "&lt;/pre&gt;&lt;script&gt;alert(5)&lt;/script&gt;\\u{0}",
        "ended by eos",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(!page.contains("Step 1,"), "only the ends are shown");
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let dir = Dir::with("same", &files());
    assert_eq!(dir.page(), dir.page());
}

#[test]
fn any_file_may_be_missing() {
    let files = files();
    for kept in 1u32..1 << files.len() {
        let some: Vec<_> =
            files.iter().enumerate().filter(|(i, _)| kept >> i & 1 == 1).map(|(_, f)| f.clone()).collect();
        let page = Dir::with(&format!("subset-{kept}"), &some).page();
        for (i, (file, _)) in files.iter().enumerate() {
            assert_eq!(page.contains(&format!("{file} is missing")), kept >> i & 1 == 0, "{file}");
        }
    }
}

#[test]
fn a_directory_of_something_else_is_refused() {
    let dir = Dir::with("other", &[("notes.txt", String::new())]);
    let message = write(&dir.0).unwrap_err().to_string();
    assert!(message.contains("is not a run directory") && !dir.0.join("report.html").exists(), "{message}");
    assert!(write(&dir.0.join("nowhere")).is_err());
}

/// A kill may cut any file anywhere.
#[test]
fn files_may_be_cut_anywhere() {
    for (file, text) in files().into_iter().filter(|(file, _)| *file != "timing.jsonl") {
        let bytes = text.into_bytes();
        for cut in (0..bytes.len()).step_by(97) {
            let dir = Dir::new(&format!("cut-{file}-{cut}"));
            fs::write(dir.0.join(file), &bytes[..cut]).unwrap();
            dir.page();
        }
    }
}

#[test]
fn broken_lines_are_named() {
    let good = r#"{"stage":"sft","step":1,"loss":1.0}"#;
    let cut = Dir::with("tail", &[("metrics.jsonl", format!("{good}\n{{\"stage\":\"sft\",\"st"))]).page();
    assert!(cut.contains("the last line of metrics.jsonl (line 2) is cut short"));
    let middle = Dir::with("middle", &[("metrics.jsonl", format!("{good}\nnull\n[]\n{good}\n"))]).page();
    assert!(middle.contains("metrics.jsonl: 2 of 4 lines are no records and are left out (lines 2, 3)"));
    let ledger = Dir::with("ledger", &[("ledger.json", "{\"stages\":[".to_owned())]).page();
    assert!(ledger.contains("ledger.json is not valid JSON"));
}

#[test]
fn odd_values_do_not_break_it() {
    let odd = [
        ("metrics.jsonl", "{\"stage\":\"a\",\"step\":18446744073709551615,\"loss\":1e308}\n{\"stage\":\"a\",\"step\":0,\"loss\":-1e308}\n\
          {\"stage\":\"b\",\"step\":3,\"loss\":null}\n{\"step\":5,\"loss\":\"text\",\"reward\":1e-320}\n{\"stage\":\"<c>\",\"step\":1,\"kl\":0}\n"
            .to_owned()),
        ("ledger.json", "{\"stages\":[1,\"x\"],\"tasks\":[{\"id\":\"t\"},{},7],\"cells\":[{\"stage\":\"x\",\"task\":\"t\",\"accuracy\":1e300},3,\
          {\"stage\":\"y\",\"task\":\"t\",\"accuracy\":-1e300,\"low\":null,\"high\":2}]}".to_owned()),
        ("rollouts.jsonl", "{\"stage\":\"a\",\"step\":0}\n{\"stage\":\"a\",\"step\":1,\"prompt\":[{\"role\":\"user\",\"content\":\"hi\"},4],\"reward\":\"x\",\"parts\":[]}\n"
            .to_owned()),
        ("env.json", "[1,{\"a\":null}]".to_owned()),
    ];
    let page = Dir::with("odd", &odd).page();
    assert!(page.contains("user: hi") && page.contains("&lt;c&gt;") && page.contains("not recorded"));
}

/// A long run stays a small page.
#[test]
fn long_runs_are_thinned() {
    let lines = html::concat(
        (0..20_000).map(|s| format!("{{\"stage\":\"sft\",\"step\":{s},\"loss\":{}}}\n", f64::from(s % 7))),
    );
    let page = Dir::with("long", &[("metrics.jsonl", lines)]).page();
    assert!(page.len() < 60_000, "{}", page.len());
}

/// Tick labels are found by repeated addition, which must end whatever the numbers are.
#[test]
fn axes_of_any_size_end() {
    let sizes: [f64; 12] = [0.0, 1e-300, 1e-29, 1e-12, 1e-3, 1.0, 1.0 + 1e-12, 3.7e5, 1e15, 9e29, 1e31, 1e308];
    for (i, a) in sizes.iter().enumerate() {
        for b in &sizes[i..] {
            for (low, high) in [(*a, *b), (-a, *b), (-b, -a), (-b, *a)] {
                let points = vec![(0.0, low), (1.0, high), (2.0, low)];
                let steps = points.iter().map(|(x, y)| (y.abs() * 10.0 + x, *y)).collect();
                for series in [chart::Series::line("s", points), chart::Series::line("s", steps)] {
                    curves::plain("title", "", vec![series]).figure();
                }
            }
        }
    }
}
