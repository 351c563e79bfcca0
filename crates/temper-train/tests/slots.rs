//! Gradient transforms, what follows an update, and frozen parameters, through whole runs.

mod common;
#[path = "rollouts/fixture.rs"]
mod fixture;

use common::number;
use fixture::{Done, go, problems, resumes};
use temper_format::{ArraySource, SafetensorsFile};
use temper_train::watch::{Silent, Stop};

const START: &str = "model.reference.policy_at=stage_start";
const KL: &str = "stage.rl.objective={kl={beta=0.05}}";

fn model(done: &Done, stage: &str) -> SafetensorsFile {
    SafetensorsFile::open(done.path(&format!("stages/{stage}/model.safetensors"))).unwrap()
}

/// L2 distance between the models of two stages.
fn moved(done: &Done, from: &str, to: &str) -> f64 {
    let (a, b) = (model(done, from), model(done, to));
    let squares = |name: &String| {
        let (a, b) = (a.read_f32(name).unwrap(), b.read_f32(name).unwrap());
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    a.names().iter().map(squares).sum::<f64>().sqrt()
}

/// What is kept beside the parameters is in the checkpoint, in f32 and in bf16.
#[test]
fn every_slot_resumes_with_the_same_bits() {
    let gradient =
        "stage.rl.gradient=[{kind=\"l2_sp\",weight={kind=\"schedule\",from=0.5,to=0.1},parameters=[\"*layers*\"]}]";
    let after = "stage.rl.after_update=[{kind=\"look_ahead\",every=2,alpha=0.5},{kind=\"ema\",decay=0.8},\
                 {kind=\"reference_sync\",every=3,alpha=0.6}]";
    let freeze = "stage.rl.freeze={kind=\"names\",names=[\"model.embed_tokens.weight\",\"*.layers.0.mlp.*\"]}";
    for dtype in ["dtype=\"f32\"", "dtype=\"bf16\""] {
        resumes(&[dtype, gradient, after, freeze, START, KL, "stage.rl.group=[]", "stage.rl.minibatches=2"]);
    }
}

/// The average is the model that is kept; training does not know of it. Of two steps it is what the checkpoints say.
#[test]
fn an_average_is_kept_and_training_goes_on_without_it() {
    let run = |after: &str| go(&[after, "stage.rl.steps=2", "stage.rl.group=[]", "stage.rl.checkpoint_every=1"]);
    let (plain, average) = (run("stage.rl.after_update=[]"), run("stage.rl.after_update=[{kind=\"ema\",decay=0.75}]"));
    assert_eq!(plain.text("metrics.jsonl"), average.text("metrics.jsonl"));
    let of = |done: &Done, stage: &str| {
        let file = model(done, stage);
        file.names().iter().flat_map(|name| file.read_f32(name).unwrap()).collect::<Vec<f32>>()
    };
    let one = go(&["stage.rl.steps=1", "stage.rl.group=[]"]);
    let (start, first, second, kept) = (of(&plain, "sft"), of(&one, "rl"), of(&plain, "rl"), of(&average, "rl"));
    for (((start, first), second), kept) in start.iter().zip(&first).zip(&second).zip(&kept) {
        let expected = 0.75 * (0.75 * start + 0.25 * first) + 0.25 * second;
        assert!((kept - expected).abs() <= 2e-7 * start.abs().max(0.1), "{kept} {expected}");
    }
    assert_ne!(second, kept);
}

/// The pull begins at nothing, and keeps the model nearer to where it started; without clipping the loss of the first step is untouched.
#[test]
fn the_pull_keeps_the_model_near_its_start() {
    let with = |gradient: &str| go(&[gradient, "stage.rl.group=[]", "stage.rl.optimizer.lr=0.005"]);
    let (free, held) = (with("stage.rl.gradient=[]"), with("stage.rl.gradient=[{kind=\"l2_sp\",weight=3.0}]"));
    let rounds = held.rounds();
    assert_eq!(number(&rounds[0], "start/distance"), 0.0);
    assert_eq!(number(&rounds[0], "grad_norm"), number(&free.rounds()[0], "grad_norm"));
    assert!(rounds[1..].iter().all(|r| number(r, "start/distance") > 0.0));
    let (far, near) = (moved(&free, "sft", "rl"), moved(&held, "sft", "rl"));
    assert!(near < 0.8 * far, "{near} {far}");
}

/// What is frozen keeps its bits and is in no checkpoint; the next stage trains it.
#[test]
fn frozen_parameters_stay() {
    let names = "stage.sft.freeze={kind=\"names\",names=[\"*.layers.1.*\",\"model.norm.weight\"]}";
    let done = go(&[names, "stage.rl.steps=1", "stage.rl.group=[]"]);
    let (init, sft, rl) = (model(&done, "init"), model(&done, "sft"), model(&done, "rl"));
    for name in init.names() {
        let frozen = name.contains(".layers.1.") || name == "model.norm.weight";
        let read = |file: &SafetensorsFile| file.read_f32(&name).unwrap();
        assert_eq!(read(&init) == read(&sft), frozen, "{name}");
        assert!(read(&sft) != read(&rl), "{name}");
    }
    let half = go(&["stage.sft.freeze={kind=\"half\"}", "stage.rl.freeze={kind=\"half\"}", "stage.rl.group=[]"]);
    let stayed = |from: &str, to: &str| {
        let (a, b) = (model(&half, from), model(&half, to));
        a.names().into_iter().filter(|n| a.read_f32(n).unwrap() == b.read_f32(n).unwrap()).collect::<Vec<String>>()
    };
    let (first, second) = (stayed("init", "sft"), stayed("sft", "rl"));
    // Two blocks: 2 + 2 attention matrices, 1 + 2 feed-forward ones, 1 + 1 norms.
    assert_eq!((first.len(), second.len()), (9, 9), "{first:?} {second:?}");
    assert_ne!(first, second, "another half in every stage");
}

/// A reference that is replaced after every step is the policy of the round; every second step, in every second round.
#[test]
fn a_reference_that_follows_is_where_the_policy_was() {
    let with = |every: usize, alpha: f64| {
        let after = format!("stage.rl.after_update=[{{kind=\"reference_sync\",every={every},alpha={alpha:?}}}]");
        let rounds = go(&[START, KL, &after, "stage.rl.group=[]"]).rounds();
        rounds.iter().map(|r| number(r, "kl")).collect::<Vec<f64>>()
    };
    assert_eq!(with(1, 1.0), [0.0; 4]);
    let second = with(2, 1.0);
    assert!(second[0] == 0.0 && second[1] > 0.0 && second[2] == 0.0 && second[3] > 0.0, "{second:?}");
    let half = with(1, 0.5);
    assert!(half[0] == 0.0 && half[1..].iter().all(|kl| *kl > 0.0), "{half:?}");
}

/// A reference of another shape is refused before a step is taken, by both names; without `reference_sync` it serves.
#[test]
fn a_reference_of_another_shape_cannot_follow() {
    let at = |name: &str| format!("{}/../../models/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = format!(
        r#"
        name = "other-shape"
        [model.policy]
        path = "{}"
        [model.reference]
        path = "{}"
        [[stage]]
        id = "sft"
        kind = "offline"
        data = [{{ kind = "tasks", n = 4, tasks = {{ kind = "tiny_world", families = ["copying"], levels = [1], split = "train" }} }}]
        terms = [{{ weight = 0.1, objective = {{ kind = "reference_kl" }} }}]
        max_tokens = 128
        batch = {{ examples = 2 }}
        steps = 1
        optimizer = {{ kind = "adamw", lr = 1e-4 }}
        "#,
        at("tiny"),
        at("mini")
    );
    let run = |sets: &[&str]| {
        let (base, dir) = common::fresh();
        let recipe = common::parsed(&text, sets);
        (common::go_on(&recipe, &dir, &mut Silent, &Stop::new()), dir, base)
    };
    run(&[]).0.unwrap();
    let (refused, dir, _base) = run(&["stage.sft.after_update=[{kind=\"reference_sync\",every=1,alpha=0.5}]"]);
    let error = refused.unwrap_err();
    let message = error.to_string();
    for part in ["models/tiny", "models/mini", "model.embed_tokens.weight", "in the policy"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(error.hint().unwrap().contains("remove `reference_sync`"), "{error:?}");
    assert!(common::lines(&dir, "sft").is_empty());
}

/// Looking back half of the way after every second step ends nearer to the start than going on.
#[test]
fn looking_ahead_goes_a_share_of_the_way() {
    let with = |after: &str| go(&[after, "stage.rl.steps=2", "stage.rl.group=[]"]);
    let plain = with("stage.rl.after_update=[]");
    let half = with("stage.rl.after_update=[{kind=\"look_ahead\",every=2,alpha=0.5}]");
    assert!(plain.rounds() == half.rounds(), "nothing happens before the second step is over");
    let (far, near) = (moved(&plain, "sft", "rl"), moved(&half, "sft", "rl"));
    assert!((near / far - 0.5).abs() < 1e-5, "{near} {far}");
}

#[test]
fn slots_without_sense_are_found() {
    let after = |text: &str| format!("stage.rl.after_update=[{text}]");
    let lora = "stage.rl.adapter={kind=\"lora\"}";
    for (sets, word) in [
        (vec!["stage.rl.gradient=[{kind=\"l2_sp\",weight=0.0}]"], "`weight` is 0"),
        (vec!["stage.rl.gradient=[{kind=\"l2_sp\",weight=0.1,parameters=[]}]"], "`parameters` is empty"),
        (vec!["stage.rl.gradient=[{kind=\"l2_sp\",weight=0.1}]", lora], "no model to stay near"),
        (vec![&*after("{kind=\"ema\",decay=1.0}")], "`decay` is 1"),
        (vec![&*after("{kind=\"ema\",decay=0.5},{kind=\"ema\",decay=0.9}")], "two of kind `ema`"),
        (vec![&*after("{kind=\"look_ahead\",every=2,alpha=1.0}")], "`alpha` is 1"),
        (vec![&*after("{kind=\"look_ahead\",every=5,alpha=0.5}")], "it would never happen"),
        (vec![&*after("{kind=\"look_ahead\",every=0,alpha=0.5}")], "`every` is 0"),
        (vec![&*after("{kind=\"reference_sync\",every=1,alpha=0.5}")], "nothing in the stage compares"),
        (vec![START, KL, lora, &*after("{kind=\"reference_sync\",every=1,alpha=0.5}")], "which does not move"),
        (vec!["stage.rl.freeze={kind=\"names\",names=[]}"], "names nothing"),
        (vec!["stage.rl.freeze={kind=\"half\"}", lora], "`freeze` has no effect"),
    ] {
        let text = problems(&sets);
        assert!(text.contains(word), "{sets:?}: {text}");
    }
    assert_eq!(problems(&[START, KL, &after("{kind=\"reference_sync\",every=4,alpha=1.0}")]), "");
}

/// A misspelt name is found when the parameters are known.
#[test]
fn a_name_that_is_none_stops_the_run() {
    let sets = ["stage.rl.freeze={kind=\"names\",names=[\"model.layers.7.*\"]}"];
    let (_base, dir) = common::fresh();
    let recipe = common::parsed(fixture::RECIPE, &sets);
    let run = common::go_on(&recipe, &dir, &mut Silent, &Stop::new());
    assert!(run.unwrap_err().to_string().contains("model.layers.7.*"));
}
