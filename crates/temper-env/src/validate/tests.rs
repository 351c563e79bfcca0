use super::*;
use crate::{Form, Pattern};
use temper_data::Message;

fn task(answer: &str, verifier: Verifier, demonstration: Option<&str>) -> Task {
    Task {
        id: "t".into(),
        prompt: vec![Message::user("?")],
        answer: answer.into(),
        verifier,
        tags: Vec::new(),
        demonstration: demonstration.map(str::to_owned),
    }
}

fn check(task: &Task) -> Cell {
    let mut cell = Cell::default();
    cell.add(task).unwrap();
    cell
}

#[test]
fn the_tiny_world_is_sound() {
    let found = validate_tiny_world(3, 12).unwrap();
    assert!(found.ok(), "{:#?}", found.cells.iter().flat_map(|cell| &cell.failures).collect::<Vec<_>>());
    assert_eq!(found.cells.len(), 14 * 5 * 3);
    for cell in &found.cells {
        assert_eq!(cell.golds, cell.golds_accepted);
        assert_eq!(cell.mutants_total(), cell.mutants_rejected);
        // Of a truth value there is one wrong answer only.
        let kinds = if cell.name.starts_with("booleans") { 2 } else { 4 };
        assert!(cell.mutants.len() >= kinds, "{}: {:?}", cell.name, cell.mutants);
    }
}

#[test]
fn every_verifier_passes_on_its_own_kind() {
    let choices = ["red", "blue", "green"].map(String::from).to_vec();
    let labels = ["True", "False"].map(String::from).to_vec();
    let group = Verifier::Regex { pattern: Pattern::try_from("answer is (.+)$".to_owned()).unwrap() };
    let exact = Verifier::Exact { trim: true, ignore_case: true, collapse_spaces: true };
    for (task, least) in [
        (task("1,200", Verifier::NUMERIC, Some("it is 1,200.")), 20),
        (task("-3/4", Verifier::NUMERIC, None), 8),
        (task("2.50", Verifier::Numeric { tolerance: 0.01 }, None), 8),
        (task("72", Verifier::Gsm8k { strict: false }, Some("24+48\n#### 72")), 15),
        (task("72", Verifier::Gsm8k { strict: true }, Some("24+48\n#### 72")), 10),
        (task("(B)", Verifier::MultipleChoice { choices }, Some("(B)")), 6),
        (task("True", Verifier::Label { labels }, Some("It is True.")), 3),
        (task("paris", exact, None), 7),
        (task("paris", group, Some("the answer is paris")), 10),
        (task("0", Verifier::Final { form: Form::Integer {} }, None), 2),
    ] {
        let cell = check(&task);
        assert_eq!(cell.failed, 0, "{task:?}: {:#?}", cell.failures);
        assert!(cell.mutants_total() >= least && cell.golds > 0, "{task:?}: {:?}", cell.mutants);
    }
}

#[test]
fn a_bad_verifier_is_found_out() {
    let loose = Verifier::Numeric { tolerance: 0.0 };
    let shown = check(&task("7", loose, Some("it is 7, made of 3 and 4")));
    assert_eq!(shown.failed, 1);
    assert!(shown.failures[0].what.contains("rejected"));
    let sloppy = Verifier::Regex { pattern: Pattern::try_from("is (..)".to_owned()).unwrap() };
    let accepted = check(&task("pa", sloppy, Some("it is pa")));
    assert!(accepted.failures.iter().any(|failure| failure.what.contains("accepted")), "{accepted:#?}");
}
