//! DNS messages as bytes, for what is forwarded without being understood (RFC 1035 section 4).

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The bit of the third byte that says "response".
const RESPONSE: u8 = 0x80;
/// "Server failure".
const SERVFAIL: u8 = 2;

/// The id; none if there is no whole header.
pub fn id(message: &[u8]) -> Option<u16> {
    let header = message.first_chunk::<HEADER>()?;
    Some(u16::from_be_bytes([header[0], header[1]]))
}

/// Whether this is a response; none if there is no whole header.
pub fn is_response(message: &[u8]) -> Option<bool> {
    message
        .first_chunk::<HEADER>()
        .map(|header| header[2] & RESPONSE != 0)
}

/// Replaces the id of a message that has one.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.first_chunk_mut::<2>() {
        *bytes = id.to_be_bytes();
    }
}

/// The first question's bytes: name, type and class. None if there is no question, or its name is
/// compressed, which no name at this place can be.
pub fn question(message: &[u8]) -> Option<&[u8]> {
    let count = message.get(4..6)?;
    if count == [0, 0] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        match length {
            0 => break,
            1..=63 => {}
            _ => return None,
        }
    }
    message.get(HEADER..at + 4)
}

/// Whether `response` answers `query`: its id, that it is a response, and the question, whose case
/// a server may change. A server that gives up early may leave the question out.
pub fn answers(response: &[u8], query: &[u8]) -> bool {
    if id(response) != id(query) || is_response(response) != Some(true) {
        return false;
    }
    match (question(response), question(query)) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        (None, Some(_)) => {
            response.get(4..6) == Some(&[0, 0]) && response.get(3).is_some_and(|b| b & 0x0f != 0)
        }
        (_, None) => true,
    }
}

/// "The server failed", for a query that nobody answered. None for what has no header.
pub fn server_failure(query: &[u8]) -> Option<Vec<u8>> {
    let header = query.first_chunk::<HEADER>()?;
    let question = question(query).unwrap_or_default();
    let mut reply = Vec::with_capacity(HEADER + question.len());
    reply.extend_from_slice(&header[..2]);
    // Opcode and "recursion desired" are the query's.
    reply.push(RESPONSE | (header[2] & 0x79));
    reply.push(0x80 | SERVFAIL);
    reply.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(b"\x03www\x07example\x03com\0\0\x01\0\x01");
        query
    }

    fn response() -> Vec<u8> {
        let mut response = query();
        response[2] |= RESPONSE;
        response
    }

    #[test]
    fn a_response_is_taken_for_its_id_and_question_only() {
        assert!(answers(&response(), &query()));
        let mut other_case = response();
        other_case[13] = b'W';
        assert!(answers(&other_case, &query()));

        let mut other_id = response();
        other_id[0] ^= 1;
        assert!(!answers(&other_id, &query()));
        let mut other_name = response();
        other_name[13] = b'x';
        assert!(!answers(&other_name, &query()));
        assert!(!answers(&query(), &query()), "a query answers nothing");
        assert!(!answers(&response()[..11], &query()));
    }

    #[test]
    fn a_response_without_a_question_must_be_a_failure() {
        let mut bare = response()[..HEADER].to_vec();
        bare[5] = 0;
        assert!(!answers(&bare, &query()));
        bare[3] |= 1;
        assert!(answers(&bare, &query()));
    }

    #[test]
    fn a_failure_repeats_the_id_and_the_question() {
        let failure = server_failure(&query()).unwrap();
        assert!(answers(&failure, &query()));
        assert_eq!(failure[3] & 0x0f, SERVFAIL);
        assert_eq!(server_failure(&[1, 2, 3]), None);
    }

    #[test]
    fn no_question_of_garbage_is_read_out_of_bounds() {
        for length in 0..query().len() {
            question(&query()[..length]);
        }
        let mut pointer = query();
        pointer[12] = 0xc0;
        assert_eq!(question(&pointer), None);
    }
}
