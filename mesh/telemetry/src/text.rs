//! Fields of a line of text: `key=value` pairs of which nothing that a stranger wrote can look like another field or line.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Texts stand bare where that can't be mistaken, else in quotes and escaped. Of other values only control characters are.
pub(crate) struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_empty: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.result.is_err() {
            return;
        }
        let space = if self.is_empty { "" } else { " " };
        self.is_empty = false;
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}"),
            key => write!(self.writer, "{space}{key}="),
        }
        .and_then(|()| Escaped(&mut self.writer).write_fmt(value));
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let unclear =
            |c: char| c.is_whitespace() || matches!(c, '"' | '=' | '\\') || c.is_control();
        if field.name() != "message" && (value.is_empty() || value.contains(unclear)) {
            self.write(field, format_args!("{value:?}"));
        } else {
            self.write(field, format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, format_args!("{value:?}"));
    }
}

struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.contains(char::is_control) {
            return self.0.write_str(text);
        }
        text.chars().try_for_each(|c| match c.is_control() {
            true => write!(self.0, "{}", c.escape_default()),
            false => self.0.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_in_a_value_can_pass_for_another_field_or_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .fmt_fields(TextFields)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let none: Option<&str> = None;
            let (foreign, bare) = ("x b=y\nconnection closed", "bare");
            tracing::info!(a = foreign, bare, n = 3, empty = "", none, "a {}", "b\nc");
            tracing::info!(shown = %foreign, debugged = ?Some("x"), "message");
        });
        let written = String::from_utf8(lines.0.lock().clone()).unwrap();
        let expected = [
            r#" INFO a b\nc a="x b=y\nconnection closed" bare=bare n=3 empty="""#,
            r#" INFO message shown=x b=y\nconnection closed debugged=Some("x")"#,
        ];
        assert_eq!(written.lines().collect::<Vec<_>>(), expected);
    }
}
