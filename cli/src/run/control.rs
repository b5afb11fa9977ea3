//! The control socket of a run: `control.sock` in its record. One request a connection: a line of JSON in, a line of JSON
//! out. What the requests mean is the machine's to say; an emulated host passes them on to the vmprof inside.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conversation::Event;
use super::retune::IothreadSet;
use super::sockets::{self, CONTROL};

/// The longest request line: a CPU set of a large host is its longest word.
const REQUEST_BYTES: u64 = 64 << 10;
/// How long an answer may take: an emulated host starts a process for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a run can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The plan in force, as `plan --format json` has it.
    Plan,
    /// Counters per vCPU, IOThread and virtqueue.
    Stats,
    /// How far the run is, and whether and why its guest stands still.
    Status,
    /// The IOThreads as QEMU's command of that name tells of its own.
    QueryIothreads,
    /// The disks' counts as QEMU's command of that name tells of its own.
    QueryBlockstats,
    /// Change an IOThread while it serves.
    IothreadSet(IothreadSet),
    /// What was planned, with what is found of it.
    Verify,
    /// End the run cleanly.
    Stop,
    /// Have the guest stand still.
    Pause,
    /// Let it go on, and try again what had stopped it.
    Resume,
}

/// Those that take no arguments, which is why they can be told by their word alone.
const WITHOUT_ARGUMENTS: [Request; 9] = [
    Request::Plan,
    Request::Stats,
    Request::Status,
    Request::QueryIothreads,
    Request::QueryBlockstats,
    Request::Verify,
    Request::Stop,
    Request::Pause,
    Request::Resume,
];

const IOTHREAD_SET: &str = "iothread-set";

impl Request {
    pub fn word(&self) -> &'static str {
        match self {
            Request::Plan => "plan",
            Request::Stats => "stats",
            Request::Status => "status",
            Request::QueryIothreads => "query-iothreads",
            Request::QueryBlockstats => "query-blockstats",
            Request::IothreadSet(_) => IOTHREAD_SET,
            Request::Verify => "verify",
            Request::Stop => "stop",
            Request::Pause => "pause",
            Request::Resume => "resume",
        }
    }

    /// Every word, as messages list them.
    pub fn words() -> Vec<&'static str> {
        WITHOUT_ARGUMENTS.iter().map(Request::word).chain([IOTHREAD_SET]).collect()
    }

    /// What goes with the word.
    pub fn arguments(&self) -> Option<Value> {
        match self {
            // Strings and numbers: what has no JSON is not among them.
            Request::IothreadSet(set) => serde_json::to_value(set).ok(),
            _ => None,
        }
    }

    /// The request of a word with its arguments; an error says what is wrong with either.
    pub fn read(word: &str, arguments: Option<Value>) -> Result<Request, String> {
        if word == IOTHREAD_SET {
            let arguments = arguments.ok_or_else(|| format!("`{word}` has arguments: at least `id`"))?;
            let set = serde_json::from_value(arguments);
            return set
                .map(Request::IothreadSet)
                .map_err(|error| format!("the arguments of `{word}`: {error}"));
        }
        let found =
            WITHOUT_ARGUMENTS.into_iter().find(|request| request.word() == word).ok_or_else(|| {
                format!(
                    "`{word}` is nothing a running VM can be asked; it can be {}",
                    Request::words().join(", ")
                )
            })?;
        match arguments {
            None => Ok(found),
            Some(Value::Object(none)) if none.is_empty() => Ok(found),
            Some(arguments) => Err(format!("`{word}` takes no arguments, and was given {arguments}")),
        }
    }
}

/// To whoever asks when nobody listens any more.
pub const IS_ENDING: &str = "the run is ending already";

/// The answer to a stop, which the conversation hears of.
pub fn stop(events: &Sender<Event>) -> Result<Value, String> {
    events.send(Event::StopAsked).map(|()| Value::Bool(true)).map_err(|_| IS_ENDING.to_owned())
}

/// A machine's side of the socket.
pub trait Answers: Send + Sync + 'static {
    fn answer(&self, request: Request) -> Result<Value, String>;
}

/// The machines of one run, which answer one after the other.
#[derive(Default)]
pub struct Successive(Mutex<Option<Current>>);

#[derive(Clone)]
struct Current {
    answers: Arc<dyn Answers>,
    /// It has ended, and the next one is being made.
    is_over: bool,
}

impl Successive {
    pub fn next(&self, answers: Arc<dyn Answers>) {
        *self.current() = Some(Current { answers, is_over: false });
    }

    pub fn reboots(&self) {
        self.current().iter_mut().for_each(|current| current.is_over = true);
    }

    /// Met by the thread that runs the machines and those that answer.
    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers for Successive {
    fn answer(&self, request: Request) -> Result<Value, String> {
        let current = self.current().clone();
        match current {
            // The run's, whichever machine it has.
            Some(Current { answers, is_over })
                if !is_over || matches!(request, Request::Plan | Request::Status | Request::Stop) =>
            {
                answers.answer(request)
            }
            _ => Err("its guest is rebooting: ask again in a moment".to_owned()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    vmprof_control: u32,
    request: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Value>,
}

/// What comes back, as it goes over the socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Ok(Value),
    Error(String),
}

/// Serves the socket in `directory` until the process ends.
pub fn serve(directory: &Path, answers: Arc<dyn Answers>) -> io::Result<()> {
    let listener = sockets::listen(directory, CONTROL)?;
    thread::Builder::new().name("control socket".into()).spawn(move || {
        for connection in listener.incoming() {
            let answers = answers.clone();
            // A thread a connection, so that a slow answer holds up nobody else; they are short and few.
            let served = connection.and_then(|connection| {
                thread::Builder::new()
                    .name("control request".into())
                    .spawn(move || drop(serve_one(connection, &*answers)))
            });
            if served.is_err() {
                // Out of descriptors or threads: the asker sees the connection close, the run goes on.
                thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(())
}

fn serve_one(mut connection: UnixStream, answers: &dyn Answers) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(connection.try_clone()?).take(REQUEST_BYTES).read_line(&mut line)?;
    let answer = match serde_json::from_str(&line) {
        Ok(Asked { vmprof_control: 1, request, arguments }) => Request::read(&request, arguments)
            .and_then(|request| answers.answer(request))
            .map_or_else(Answer::Error, Answer::Ok),
        Ok(Asked { vmprof_control, .. }) => {
            Answer::Error(format!("control version {vmprof_control} is not 1"))
        }
        Err(error) => Answer::Error(format!("no request that can be read: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    connection.write_all(&text)
}

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum AskError {
    #[error("the running VM `{name}` cannot be reached through its control socket")]
    #[diagnostic(code(vmprof::run::control))]
    Io { name: String, source: io::Error },
    #[error("the VM `{name}` cannot answer yet: what it runs is still being prepared")]
    #[diagnostic(
        code(vmprof::run::not_yet),
        help("`vmprof ps` shows how far it is, and `vmprof stop {name}` ends it at once")
    )]
    NotYet { name: String },
    #[error("the running VM `{name}` gave no answer that can be read: {found}")]
    #[diagnostic(code(vmprof::run::control), help("was it started by another version of vmprof?"))]
    Answer { name: String, found: String },
    #[error("the running VM `{name}` could not answer `{request}`: {reason}")]
    #[diagnostic(code(vmprof::run::control))]
    Refused { name: String, request: &'static str, reason: String },
}

/// Asks the run whose record is `directory`.
pub fn ask(name: &str, directory: &Path, request: Request) -> Result<Value, AskError> {
    let word = request.word();
    match exchange(name, directory, request)? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(reason) => Err(AskError::Refused { name: name.to_owned(), request: word, reason }),
    }
}

/// The same with a refusal as it came: for whoever passes it on.
pub fn exchange(name: &str, directory: &Path, request: Request) -> Result<Answer, AskError> {
    let exchange = || -> io::Result<String> {
        let mut connection = sockets::connect(directory, CONTROL)?;
        connection.set_read_timeout(Some(ANSWER_WITHIN))?;
        let (word, arguments) = (request.word().to_owned(), request.arguments());
        let mut text = serde_json::to_vec(&Asked { vmprof_control: 1, request: word, arguments })?;
        text.push(b'\n');
        connection.write_all(&text)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source| match source.kind() {
        // Where its record is gone, it has ended.
        io::ErrorKind::NotFound if directory.exists() => AskError::NotYet { name: name.to_owned() },
        _ => AskError::Io { name: name.to_owned(), source },
    })?;
    serde_json::from_str(&answer).map_err(|_| AskError::Answer { name: name.to_owned(), found: answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Answers for Echo {
        fn answer(&self, request: Request) -> Result<Value, String> {
            match request {
                Request::Stop => Err("not now".into()),
                Request::IothreadSet(set) => Ok(format!("{set:?}").into()),
                other => Ok(other.word().into()),
            }
        }
    }

    fn answer_to(directory: &Path, line: &str) -> String {
        let mut connection = sockets::connect(directory, CONTROL).unwrap();
        // The server may stop reading before all of it is written.
        let _ = connection.write_all(line.as_bytes());
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = connection.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn fields_and_arguments_that_nobody_knows_are_refused_by_name() {
        let keep = tempfile::tempdir().unwrap();
        serve(keep.path(), Arc::new(Echo)).unwrap();
        let asked = |rest: &str| answer_to(keep.path(), &format!("{{\"vmprof_control\":1,{rest}}}\n"));
        for fine in [r#""request":"stats""#, r#""request":"stats","arguments":{}"#] {
            assert_eq!(asked(fine), "{\"ok\":\"stats\"}\n");
        }
        for (wrong, named) in [
            (r#""request":"stats","argument":{}"#, "unknown field `argument`"),
            (r#""request":"stats","arguments":{"id":"iothread0"}"#, "takes no arguments"),
            (r#""request":"stats","arguments":7"#, "takes no arguments"),
            (r#""request":"statistics""#, "`statistics` is nothing"),
            (r#""request":"iothread-set""#, "has arguments"),
            (r#""request":"iothread-set","arguments":{"id":"0","pin":"1"}"#, "unknown field `pin`"),
        ] {
            let answer = asked(wrong);
            assert!(answer.starts_with("{\"error\":") && answer.contains(named), "{answer}");
        }
    }

    #[test]
    fn a_run_is_asked_below_a_path_too_long_for_a_socket() {
        let keep = tempfile::tempdir().unwrap();
        let directory = keep.path().join("d".repeat(200));
        std::fs::create_dir(&directory).unwrap();
        serve(&directory, Arc::new(Echo)).unwrap();
        assert_eq!(ask("db", &directory, Request::Stats).unwrap(), "stats");
        let set = IothreadSet { id: "iothread0".into(), poll_grow: Some(3), ..IothreadSet::default() };
        assert_eq!(ask("db", &directory, Request::IothreadSet(set.clone())).unwrap(), format!("{set:?}"));
        let error = ask("db", &directory, Request::Stop).unwrap_err();
        assert!(error.to_string().contains("not now"), "{error}");
    }

    #[test]
    fn between_two_machines_the_run_answers_for_itself_alone() {
        let answers = Successive::default();
        answers.answer(Request::Stats).unwrap_err();
        answers.next(Arc::new(Echo));
        assert_eq!(answers.answer(Request::Stats).unwrap(), "stats");
        answers.reboots();
        assert!(answers.answer(Request::Stats).unwrap_err().contains("rebooting"));
        assert_eq!(answers.answer(Request::Plan).unwrap(), "plan");
        assert_eq!(answers.answer(Request::Stop).unwrap_err(), "not now");
        answers.next(Arc::new(Echo));
        assert_eq!(answers.answer(Request::Pause).unwrap(), "pause");
    }

    #[test]
    fn nonsense_on_the_socket_is_answered_and_harms_nothing() {
        let keep = tempfile::tempdir().unwrap();
        serve(keep.path(), Arc::new(Echo)).unwrap();
        for nonsense in
            ["", "\n", "{}\n", "{\"vmprof_control\":2,\"request\":\"stats\"}\n", &"x".repeat(100_000)]
        {
            let answer = answer_to(keep.path(), nonsense);
            assert!(answer.is_empty() || answer.starts_with("{\"error\":"), "{answer}");
        }
        assert_eq!(ask("db", keep.path(), Request::Plan).unwrap(), "plan");
    }
}
