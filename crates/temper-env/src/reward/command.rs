//! A reward program of the user's own: one long-lived child, JSON lines in and out.
//!
//! Three threads serve the pipes, so that a program which writes before it has read everything cannot deadlock with us.
//! They end when the child does, or when the channels close.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use serde::Deserialize;
use serde_json::json;

use super::group::Group;
use super::{LARGEST, Mark, Transcript};
use crate::task::shorten;
use crate::{CommandFault, Error};

/// Longer lines are not answers; this bounds what a runaway program can make us hold.
const LONGEST_LINE: u64 = 1 << 20;
/// Answers read ahead of use; beyond that the program waits.
const READ_AHEAD: usize = 1024;
/// How much of stderr is kept for messages, bytes.
const STDERR_TAIL: usize = 2048;
/// How long an exit status and the last of stderr may take to arrive once the output has ended.
const GRACE: Duration = Duration::from_secs(1);

/// How long a program is listened to after the answer to its first request, which is sent alone: one that writes more
/// than a line for each request is found out before it can shift the scores of others.
const FIRST_QUIET: Duration = Duration::from_millis(250);
/// How long at least it is listened to after the last answer to every further batch.
const QUIET: Duration = Duration::from_millis(5);

/// A reward command, running or not.
pub(super) struct Program {
    /// The reward part that it serves.
    part: String,
    command: Vec<String>,
    timeout: Duration,
    timeout_s: f64,
    running: Option<Running>,
}

struct Running {
    group: Group,
    requests: Sender<String>,
    answers: Receiver<Vec<u8>>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    stderr_done: Receiver<()>,
    /// Requests sent since the start; the `index` of the next one.
    sent: u64,
}

/// What a program may answer. Other keys are its own business.
#[derive(Deserialize)]
struct Answer {
    reward: Option<f64>,
    failed: Option<String>,
    index: Option<u64>,
}

impl Program {
    pub(super) fn new(part: String, command: Vec<String>, timeout_s: f64) -> Self {
        Self { part, command, timeout: Duration::from_secs_f64(timeout_s), timeout_s, running: None }
    }

    /// Sends the transcripts (the very first one alone, then all at once) and reads one answer for each. After a fault
    /// the child is killed; the next call starts anew.
    pub(super) fn marks(&mut self, transcripts: &[Transcript]) -> Result<Vec<Mark>, Error> {
        let Some(first) = transcripts.first() else { return Ok(Vec::new()) };
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.command).map_err(|fault| self.error(first, fault))?,
        };
        let mut marks = Vec::with_capacity(transcripts.len());
        if running.sent == 0 {
            self.batch(&mut running, &transcripts[..1], FIRST_QUIET, &mut marks)?;
        }
        self.batch(&mut running, &transcripts[marks.len()..], QUIET, &mut marks)?;
        self.running = Some(running);
        Ok(marks)
    }

    /// Sends all, reads one answer for each, and makes sure that nothing but the answers was written. If there was one line
    /// too many somewhere, the true last answer is still to come, which takes as long as an answer takes. Answers that all
    /// name their request leave no doubt.
    fn batch(
        &self,
        running: &mut Running,
        transcripts: &[Transcript],
        quiet: Duration,
        marks: &mut Vec<Mark>,
    ) -> Result<(), Error> {
        let (Some(first), Some(last)) = (transcripts.first(), transcripts.last()) else { return Ok(()) };
        if running.sent > 0 {
            running.silent(Duration::ZERO).map_err(|fault| self.error(first, fault))?;
        }
        let index = running.send(transcripts);
        let (mut slowest, mut all_named) = (Duration::ZERO, true);
        for (at, transcript) in transcripts.iter().enumerate() {
            let begun = Instant::now();
            let answer = running.receive(index + at as u64, self.timeout, self.timeout_s);
            let (mark, named) = answer.map_err(|fault| self.error(transcript, fault))?;
            slowest = slowest.max(begun.elapsed());
            all_named &= named;
            marks.push(mark);
        }
        let quiet = if all_named { Duration::ZERO } else { quiet.max(slowest.min(GRACE)) };
        running.silent(quiet).map_err(|fault| self.error(last, fault))
    }

    fn error(&self, transcript: &Transcript, fault: CommandFault) -> Error {
        let (part, task) = (self.part.clone(), transcript.task.id.clone());
        Error::Command { part, command: self.command.join(" "), task, fault: Box::new(fault) }
    }
}

impl Running {
    fn start(command: &[String]) -> Result<Self, CommandFault> {
        let mut start = Command::new(&command[0]);
        start.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::start(&mut start).map_err(|error| CommandFault::Start(error.to_string()))?;
        let child = group.child();
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(CommandFault::Start("its pipes are missing".into()));
        };
        let (requests, to_write) = channel();
        thread::spawn(move || write_requests(stdin, &to_write));
        let (lines, answers) = sync_channel(READ_AHEAD);
        thread::spawn(move || read_answers(stdout, &lines));
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (done, stderr_done) = channel();
        let kept = Arc::clone(&tail);
        thread::spawn(move || keep_tail(stderr, &kept, &done));
        Ok(Self { group, requests, answers, stderr: tail, stderr_done, sent: 0 })
    }

    /// The index of the first one. A closed pipe is noticed when the answer is awaited.
    fn send(&mut self, transcripts: &[Transcript]) -> u64 {
        let first = self.sent;
        for transcript in transcripts {
            let _ = self.requests.send(request(self.sent, transcript));
            self.sent += 1;
        }
        first
    }

    /// The mark, and whether the answer named its request.
    fn receive(&mut self, index: u64, timeout: Duration, timeout_s: f64) -> Result<(Mark, bool), CommandFault> {
        match self.answers.recv_timeout(timeout) {
            Ok(line) => read_answer(&line, index).map_err(|why| self.not_an_answer(&line, why)),
            Err(RecvTimeoutError::Timeout) => {
                self.group.end();
                Err(CommandFault::Hang { timeout_s, stderr: self.last_words() })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    /// A line that comes now is the answer to nothing.
    fn silent(&mut self, quiet: Duration) -> Result<(), CommandFault> {
        let Ok(line) = self.answers.recv_timeout(quiet) else { return Ok(()) };
        self.group.end();
        Err(CommandFault::Surplus { line: shown(&line), answered: self.sent, stderr: self.last_words() })
    }

    fn not_an_answer(&mut self, line: &[u8], why: String) -> CommandFault {
        self.group.end();
        CommandFault::Answer { line: shown(line), why, stderr: self.last_words() }
    }

    fn ended(&mut self) -> CommandFault {
        let exited = self.group.exits_within(GRACE);
        let status = match self.group.end().filter(|_| exited) {
            Some(status) => status.to_string(),
            None => "it closed its output but kept running".to_owned(),
        };
        CommandFault::Ended { status, stderr: self.last_words() }
    }

    /// The end of stderr, once the program is gone; a descendant that left its group cannot hold us up for long.
    fn last_words(&self) -> String {
        let _ = self.stderr_done.recv_timeout(GRACE);
        let tail: Vec<u8> = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        String::from_utf8_lossy(&tail).into_owned()
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Program")
            .field("command", &self.command)
            .field("running", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

fn request(index: u64, transcript: &Transcript) -> String {
    let task = transcript.task;
    let line = json!({
        "index": index,
        "id": task.id,
        "prompt": task.prompt_text(),
        "messages": task.prompt,
        "completion": transcript.text,
        "answer": task.answer,
        "tags": task.tags,
        "n_tokens": transcript.n_tokens,
        "truncated": transcript.truncated,
    });
    format!("{line}\n")
}

fn shown(line: &[u8]) -> String {
    shorten(String::from_utf8_lossy(line).trim_end(), 120)
}

fn read_answer(line: &[u8], index: u64) -> Result<(Mark, bool), String> {
    let answer: Answer = serde_json::from_slice(line).map_err(|error| format!("not an answer: {error}"))?;
    if let Some(other) = answer.index.filter(|&other| other != index) {
        return Err(format!(
            "its `index` is {other} where {index} was due: answers must come in the order of the requests"
        ));
    }
    let named = answer.index.is_some();
    match answer {
        Answer { failed: Some(why), reward: None, .. } => {
            Ok((Mark { value: 0.0, failed: Some(why), said: None }, named))
        }
        // JSON has no NaN and serde refuses numbers that overflow, but the promise is made here.
        Answer { reward: Some(reward), failed: None, .. } if reward.abs() <= LARGEST => Ok((Mark::of(reward), named)),
        Answer { reward: Some(reward), failed: None, .. } if reward.is_finite() => {
            Err(format!("a reward of {reward:e} is out of range: expected -{LARGEST:e} to {LARGEST:e}"))
        }
        _ => Err("expected either a finite number under `reward` or a text under `failed`".to_owned()),
    }
}

fn write_requests(mut stdin: ChildStdin, requests: &Receiver<String>) {
    while let Ok(request) = requests.recv() {
        // The reader finds out why the pipe broke.
        if stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_answers(stdout: impl Read, lines: &SyncSender<Vec<u8>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) || lines.send(line).is_err() {
            return;
        }
    }
}

fn keep_tail(mut stderr: impl Read, tail: &Mutex<VecDeque<u8>>, done: &Sender<()>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer) {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&buffer[..read]);
        let surplus = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..surplus);
    }
    let _ = done.send(());
}
