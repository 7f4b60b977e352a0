//! Traces: which one a job belongs to, and the ids of its parts, so that they stay the same over restarts and workers.
//!
//! Nothing about a trace is kept but what a row holds anyway: a job's trace id is that of its `traceparent`, or follows
//! from the row itself; a run's span id follows from its run token.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::{JobId, RunToken, Timestamp};

/// The id of a trace; never all zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The id of a span within its trace; never all zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// W3C Trace Context's `traceparent`: who asked for something, and whether they record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The span in it that asked.
    pub span: SpanId,
    /// Whether the trace is recorded by who asked.
    pub sampled: bool,
}

/// The text is no `traceparent` of W3C Trace Context, and who sent it has to be treated as if they had sent none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
pub struct InvalidTraceParent;

/// W3C Trace Context's `tracestate`: what the systems on a job's way have to tell each other, passed on as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceState(String);

/// The text is no `tracestate` of W3C Trace Context, or a longer one than the standard has everybody pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a tracestate of W3C Trace Context, such as vendor=value,other=value, with at most 32 members and 512 characters"
)]
pub struct InvalidTraceState;

/// What a job is a part of, as whoever asked for it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Who asked.
    pub parent: TraceParent,
    /// What goes with it.
    pub state: Option<TraceState>,
}

/// What somebody has written on purpose, and has to be told that it can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTrace {
    /// The `traceparent`.
    #[error(transparent)]
    Parent(#[from] InvalidTraceParent),
    /// The `tracestate`.
    #[error(transparent)]
    State(#[from] InvalidTraceState),
    /// A `tracestate` without a `traceparent`, which it belongs to.
    #[error("nothing without a traceparent, which it goes along with")]
    StateAlone,
}

impl InvalidTrace {
    /// The field that is wrong.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Parent(_) => "traceparent",
            Self::State(_) | Self::StateAlone => "tracestate",
        }
    }
}

/// What a job is to be a part of; `None` where nothing is said.
///
/// # Errors
/// Where it is not as the standard has it.
pub fn checked(traceparent: Option<&str>, tracestate: Option<&str>) -> Result<Option<TraceContext>, InvalidTrace> {
    match (traceparent, tracestate) {
        (Some(parent), state) => {
            Ok(Some(TraceContext { parent: parent.parse()?, state: state.map(str::parse).transpose()? }))
        }
        (None, Some(_)) => Err(InvalidTrace::StateAlone),
        (None, None) => Ok(None),
    }
}

impl TraceContext {
    /// Reads it as the standard wants it read where it comes along with something else: what is no valid `traceparent`
    /// counts as none, and so does a `tracestate` that is not valid or has no `traceparent`. A long one loses its end.
    #[must_use]
    pub fn read(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let parent = traceparent?.parse().ok()?;
        Some(Self { parent, state: tracestate.and_then(TraceState::shortened) })
    }
}

impl TraceState {
    /// The most that it may hold, in bytes: what the standard wants passed on at least.
    pub const LONGEST: usize = 512;
    const MOST_MEMBERS: usize = 32;

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of it as fits: the standard has members taken from the end, where the oldest are.
    fn shortened(text: &str) -> Option<Self> {
        let mut members: Vec<&str> = text.split(',').map(|member| member.trim_matches(BLANKS)).collect();
        members.retain(|member| !member.is_empty());
        members.truncate(Self::MOST_MEMBERS);
        while members.iter().map(|member| member.len() + 1).sum::<usize>() > Self::LONGEST + 1 {
            members.pop();
        }
        members.join(",").parse().ok()
    }
}

/// What may stand around a member.
const BLANKS: [char; 2] = [' ', '\t'];

impl FromStr for TraceState {
    type Err = InvalidTraceState;

    fn from_str(text: &str) -> Result<Self, InvalidTraceState> {
        let members = || text.split(',').map(|member| member.trim_matches(BLANKS)).filter(|member| !member.is_empty());
        let keys: Option<Vec<&str>> = members().map(|member| Some(member.split_once('=')?.0)).collect();
        let mut keys = keys.ok_or(InvalidTraceState)?;
        let (count, are_valid) = (keys.len(), members().all(is_member));
        keys.sort_unstable();
        keys.dedup();
        let fits = text.len() <= Self::LONGEST && (1..=Self::MOST_MEMBERS).contains(&count);
        if fits && are_valid && keys.len() == count { Ok(Self(text.to_owned())) } else { Err(InvalidTraceState) }
    }
}

/// Whether this is `key=value` as the standard's grammar has both.
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_name = |name: &str, longest: usize, may_begin_with_digit: bool| {
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || may_begin_with_digit && c.is_ascii_digit());
        let goes_on = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-*/".contains(c);
        begins && name.len() <= longest && name.chars().all(goes_on)
    };
    let key_is_valid = match key.split_once('@') {
        Some((tenant, system)) => is_name(tenant, 241, true) && is_name(system, 14, false),
        None => is_name(key, 256, true),
    };
    key_is_valid
        && (1..=256).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b",=".contains(&byte))
        && !value.ends_with(' ')
}

/// The parts of a job that get a span, besides the job itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPart {
    /// From the moment an attempt could run to its claim.
    Queued,
    /// From the claim to the exec.
    Launch,
    /// From the exec to the end of everything that the command started.
    Run,
}

/// The trace of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTrace {
    /// Its id.
    pub id: TraceId,
    /// The span of the whole job.
    pub job: SpanId,
    /// Who asked for the job, where they said so.
    pub parent: Option<SpanId>,
    /// Whether it is to be recorded: as whoever asked for it does, and always where nobody said.
    pub sampled: bool,
    /// What is passed on with it.
    pub state: Option<TraceState>,
}

impl JobTrace {
    /// The trace of a job: that of whoever asked for it, or one that follows from the row.
    #[must_use]
    pub fn of(job: JobId, created_time: Timestamp, context: Option<TraceContext>) -> Self {
        let (parent, state) = context.map_or((None, None), |context| (Some(context.parent), context.state));
        let row = [&job.0.to_be_bytes()[..], &created_time.unix_millis().to_be_bytes()].concat();
        let id = parent.map_or_else(|| TraceId(derived(b"callsheet trace", &row)), |parent| parent.trace);
        let span = [&id.0[..], &row].concat();
        Self {
            id,
            job: SpanId(derived(b"callsheet job", &span)),
            parent: parent.map(|parent| parent.span),
            sampled: parent.is_none_or(|parent| parent.sampled),
            state,
        }
    }

    /// The span of a part of a run.
    #[must_use]
    pub fn part(token: &RunToken, part: RunPart) -> SpanId {
        let name: &[u8] = match part {
            RunPart::Queued => b"callsheet queued",
            RunPart::Launch => b"callsheet launch",
            RunPart::Run => b"callsheet run",
        };
        SpanId(derived(name, token.as_str().as_bytes()))
    }

    /// What a run's command is told to be a part of.
    #[must_use]
    pub fn for_command(&self, token: &RunToken) -> TraceParent {
        TraceParent { trace: self.id, span: Self::part(token, RunPart::Run), sampled: self.sampled }
    }
}

/// What a payload carries in the keys `traceparent` and `tracestate`, where it is an object and has valid ones.
#[must_use]
pub fn in_payload(payload: &[u8]) -> Option<TraceContext> {
    #[derive(serde::Deserialize)]
    struct Carrier<'a> {
        #[serde(borrow, default)]
        traceparent: Option<std::borrow::Cow<'a, str>>,
        #[serde(borrow, default)]
        tracestate: Option<&'a serde_json::value::RawValue>,
    }
    let Carrier { traceparent, tracestate } = serde_json::from_slice(payload).ok()?;
    // Whatever else somebody keeps under that name.
    let tracestate: Option<String> = tracestate.and_then(|raw| serde_json::from_str(raw.get()).ok());
    TraceContext::read(traceparent.as_deref(), tracestate.as_deref())
}

/// Bytes that follow from what is told, and from nothing else; never all zeroes.
fn derived<const N: usize>(what: &[u8], of: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let hash = Sha256::new().chain_update(what).chain_update(of).finalize();
    bytes.iter_mut().zip(hash).for_each(|(byte, hashed)| *byte = hashed);
    if bytes == [0; N] {
        bytes[0] = 1;
    }
    bytes
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let fields: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags, ref later @ ..] = fields[..] else { return Err(InvalidTraceParent) };
        let [version] = bytes::<1>(version)?;
        // A version to come may say more, after another dash; it is read as far as version 00 goes.
        if version == 0xff || version == 0 && !later.is_empty() {
            return Err(InvalidTraceParent);
        }
        let (trace, span, [flags]) = (bytes::<16>(trace)?, bytes::<8>(span)?, bytes::<1>(flags)?);
        if trace == [0; 16] || span == [0; 8] {
            return Err(InvalidTraceParent);
        }
        Ok(Self { trace: TraceId(trace), span: SpanId(span), sampled: flags & 1 == 1 })
    }
}

/// Exactly `N` bytes in lower-case hexadecimal digits, as the standard wants them.
fn bytes<const N: usize>(text: &str) -> Result<[u8; N], InvalidTraceParent> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(InvalidTraceParent),
    };
    if text.len() != 2 * N {
        return Err(InvalidTraceParent);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-", self.trace, self.span)?;
        f.write_char('0')?;
        f.write_char(if self.sampled { '1' } else { '0' })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_standard_calls_valid_is_taken_and_nothing_else() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!(parent.to_string(), EXAMPLE);
        assert!(parent.sampled && !EXAMPLE.replace("-01", "-00").parse::<TraceParent>().unwrap().sampled);
        // A version to come, with and without more to say, and flags that nobody knows yet.
        for later in ["cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &format!("01{}-what", &EXAMPLE[2..])] {
            assert!(later.parse::<TraceParent>().unwrap().sampled, "{later}");
        }
        assert!(EXAMPLE.replace("-01", "-ff").parse::<TraceParent>().unwrap().sampled);
        for wrong in [
            "",
            "-",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(InvalidTraceParent), "{wrong}");
        }
    }

    #[test]
    fn ids_follow_from_the_row_and_the_token() {
        let (at, other) = (Timestamp::from_unix_millis(1_000), Timestamp::from_unix_millis(1_001));
        let trace = JobTrace::of(JobId(7), at, None);
        assert_eq!(trace, JobTrace::of(JobId(7), at, None));
        assert_ne!(trace.id, JobTrace::of(JobId(8), at, None).id);
        assert_ne!(trace.id, JobTrace::of(JobId(7), other, None).id);
        assert!(trace.sampled && trace.parent.is_none());
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        let context = TraceContext { parent, state: "a=1".parse().ok() };
        let asked = JobTrace::of(JobId(7), at, Some(context.clone()));
        assert_eq!((asked.id, asked.parent), (parent.trace, Some(parent.span)));
        assert_eq!(asked.state, context.state);
        assert_ne!(asked.job, JobTrace::of(JobId(8), at, Some(context)).job, "two jobs of one request are two spans");
        let (first, second) = (RunToken::from_bytes([1; 16]), RunToken::from_bytes([2; 16]));
        assert_ne!(JobTrace::part(&first, RunPart::Run), JobTrace::part(&second, RunPart::Run));
        assert_ne!(JobTrace::part(&first, RunPart::Run), JobTrace::part(&first, RunPart::Queued));
        assert_eq!(asked.for_command(&first).trace, parent.trace);
    }

    #[test]
    fn a_payload_may_carry_one() {
        let found = |payload: &str| in_payload(payload.as_bytes()).map(|found| found.parent.to_string());
        assert_eq!(found(&format!(r#"{{"a":[1],"traceparent":"{EXAMPLE}"}}"#)).as_deref(), Some(EXAMPLE));
        let state = |state: &str| {
            let payload = format!(r#"{{"traceparent":"{EXAMPLE}","tracestate":{state}}}"#);
            in_payload(payload.as_bytes()).unwrap().state.map(|state| state.as_str().to_owned())
        };
        assert_eq!(state(r#""a=1,b=2""#).as_deref(), Some("a=1,b=2"));
        assert_eq!([state("7"), state(r#""no""#), state(r#"{"a":1}"#), state("null")], [const { None }; 4]);
        for without in
            ["{}", "[]", "null", "7", r#"{"traceparent":7}"#, r#"{"traceparent":null}"#, r#"{"traceparent":"x"}"#, "{"]
        {
            assert_eq!(found(without), None, "{without}");
        }
    }

    #[test]
    fn a_state_is_passed_on_as_it_came_if_it_is_one() {
        let longest = format!("a={}, b={}", "x".repeat(256), "y".repeat(250));
        assert_eq!(longest.len(), 512);
        let most = (0..32).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        for valid in [
            "a=1",
            "a=1,, b=2 ,",
            "0a_-*/=!~",
            "tenant@system=x y",
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            &longest,
            &most,
        ] {
            assert_eq!(valid.parse::<TraceState>().unwrap().as_str(), valid);
        }
        for wrong in [
            "",
            ",",
            "a",
            "=1",
            "a=",
            "A=1",
            "a=1,a=2",
            "a=b=c",
            "a=\u{e9}",
            "a=1\n",
            "a@1b=1",
            "@a=1",
            &format!("{longest}z"),
            &format!("{most},more=1"),
        ] {
            assert_eq!(wrong.parse::<TraceState>(), Err(InvalidTraceState), "{wrong}");
        }
        let read = |state: &str| TraceContext::read(Some(EXAMPLE), Some(state)).unwrap().state.map(|state| state.0);
        assert_eq!(read(&format!("{longest}zz, c=3")), Some(format!("a={}", "x".repeat(256))));
        assert_eq!(read(&format!("{most},more=1")), Some(most));
        assert_eq!(read("nonsense"), None);
        assert_eq!(TraceContext::read(Some("00-what"), Some("a=1")), None);
        assert_eq!(TraceContext::read(None, Some("a=1")), None);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_written_as_it_was_read(text in "[0-9a-f]{2}-[0-9a-f]{31,33}-[0-9a-f]{15,17}-0[01]|\\PC*") {
            if let Ok(parent) = text.parse::<TraceParent>() {
                prop_assert_eq!(&parent.to_string()[2..], &text[2..55]);
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        }
    }
}
