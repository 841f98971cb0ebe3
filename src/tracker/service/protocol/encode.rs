//! Messages as they are written.

use base64::Engine as _;

use crate::tracker::resource::escape;
use crate::tracker::service::dialect::Command;

/// The longest message that is written, in bytes: POSIX lets every pipe take that much in one
/// piece (`_POSIX_PIPE_BUF`), so that writers never interleave.
pub const MESSAGE_MAX: usize = 512;

/// The longest name of the JSON form, in bytes (`NAME_MAX`): CPython refuses longer ones.
pub const JSON_NAME_MAX: usize = 255;

/// The two forms of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `CMD:name:rtype`, which every tracker reads.
    Ascii,
    /// `{"cmd":…}`, which only newer ones read, for names that the other cannot carry.
    Json,
}

/// Why a message cannot be sent; nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Beyond [`MESSAGE_MAX`].
    #[error("the message for \"{}\" would be {length} bytes long, and no writer may exceed {MESSAGE_MAX}", shortened(.name))]
    MessageTooLong {
        /// The name in it.
        name: Vec<u8>,
        /// Its length in bytes, newline included.
        length: usize,
    },
    /// Beyond [`JSON_NAME_MAX`].
    #[error("the name \"{}\" is {} bytes long, and the JSON form takes at most {JSON_NAME_MAX}", shortened(.0), .0.len())]
    NameTooLong(Vec<u8>),
}

/// The beginning, at most 32 bytes, of what is too long to be shown, escaped.
#[must_use]
pub fn shortened(name: &[u8]) -> String {
    match name.get(..32) {
        Some(beginning) if name.len() > 32 => format!("{}...", escape(beginning)),
        _ => escape(name),
    }
}

/// The form that `name` needs: ASCII wherever it can carry the name.
#[must_use]
pub fn form_for(name: &[u8]) -> Form {
    if name.is_ascii() && !name.contains(&b'\n') { Form::Ascii } else { Form::Json }
}

/// The bytes of a message, newline included, to be written at once.
///
/// The type is a word and not an [`Rtype`](super::Rtype), since other trackers know others.
///
/// # Errors
/// The message or the name is too long.
pub fn encode(
    command: Command,
    name: &[u8],
    rtype: &str,
    form: Form,
) -> Result<Vec<u8>, EncodeError> {
    let mut buffer = [0; MESSAGE_MAX];
    match encode_into(&mut buffer, command, name, rtype, form) {
        Ok(message) => Ok(message.to_vec()),
        Err(Excess::Message(length)) => {
            Err(EncodeError::MessageTooLong { name: name.to_vec(), length })
        }
        Err(Excess::Name) => Err(EncodeError::NameTooLong(name.to_vec())),
    }
}

/// What is too long to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// The message: it would have that many bytes.
    Message(usize),
    /// The name, for the JSON form.
    Name,
}

/// As [`encode`], without an allocation: clients are called from signal handlers.
///
/// # Errors
/// The message or the name is too long.
pub fn encode_into<'a>(
    buffer: &'a mut [u8; MESSAGE_MAX],
    command: Command,
    name: &[u8],
    rtype: &str,
    form: Form,
) -> Result<&'a [u8], Excess> {
    let engine = base64::engine::general_purpose::URL_SAFE;
    let mut digits = [0; JSON_NAME_MAX.div_ceil(3) * 4];
    let (command, rtype) = (command.as_str().as_bytes(), rtype.as_bytes());
    let parts: [&[u8]; 7] = match form {
        Form::Ascii => [command, b":", name, b":", rtype, b"\n", b""],
        Form::Json => {
            let length = if name.len() > JSON_NAME_MAX {
                None
            } else {
                engine.encode_slice(name, &mut digits).ok()
            };
            let digits = length.and_then(|length| digits.get(..length)).ok_or(Excess::Name)?;
            let (second, third): (&[u8], &[u8]) = (b"\",\"rtype\":\"", b"\",\"base64_name\":\"");
            [b"{\"cmd\":\"", command, second, rtype, third, digits, b"\"}\n"]
        }
    };
    let length = parts.iter().map(|part| part.len()).sum();
    let mut rest = buffer.get_mut(..length).ok_or(Excess::Message(length))?;
    for part in parts {
        let (place, behind) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    }
    Ok(buffer.get(..length).unwrap_or_default())
}
