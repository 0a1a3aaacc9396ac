//! The commands of a guide, to be run as they stand there.

use anyhow::{Context as _, Result, bail};

use crate::root;

/// Where a block of commands runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where kubectl is.
    Here,
    /// On each node.
    EachNode,
    /// Nowhere: it says why.
    Nowhere,
}

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it runs.
    pub place: Place,
    /// A script for bash.
    pub script: String,
}

/// The blocks ` ```sh ` of a file below `docs/`, in their order. A comment on the line before the block says
/// `<!-- run on: each node -->` or `<!-- not run: REASON -->`.
pub fn blocks(file: &str) -> Result<Vec<Block>> {
    let path = root().join("docs").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| file.to_owned())
}

fn parse(text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "```sh" {
            let place = match before {
                "<!-- run on: each node -->" => Place::EachNode,
                comment if comment.starts_with("<!-- not run: ") => Place::Nowhere,
                comment if comment.starts_with("<!--") => bail!("what is {comment}?"),
                _ => Place::Here,
            };
            let script: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block {
                place,
                script: script.join("\n"),
            });
        }
        before = line;
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_says_where_a_block_runs() {
        let text =
            "a\n```sh\nx\ny\n```\n<!-- run on: each node -->\n```sh\nz\n```\n```yaml\nn: 1\n```\n";
        let block = |place, script: &str| Block {
            place,
            script: script.to_owned(),
        };
        assert_eq!(
            parse(text).unwrap(),
            [block(Place::Here, "x\ny"), block(Place::EachNode, "z")]
        );
        assert!(parse("<!-- run: nowhere -->\n```sh\n```\n").is_err());
    }
}
