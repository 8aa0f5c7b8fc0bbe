//! The alternatives of a regular expression, one by one: which of them select nothing.

use std::ops::Range;

/// An alternative of a pattern.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Alternative {
    /// The alternative as it stands.
    pub(crate) text: String,
    /// The whole pattern with this alternative in place of all of its alternation.
    pub(crate) pattern: String,
}

/// Most alternatives that are looked at.
const MOST: usize = 200;

/// A group that is open.
struct Open {
    /// Where its contents begin, behind `(?:` and the like.
    inside: usize,
    bars: Vec<usize>,
    /// Whether what it holds must not be there.
    is_negative: bool,
}

/// The alternatives of every alternation that has to match once: those inside of a repeated group may match together only, and those
/// of what must not be there select nothing by themselves.
pub(crate) fn alternatives(pattern: &str) -> Vec<Alternative> {
    let flags = leading_flags(pattern);
    let mut open = vec![Open { inside: flags, bars: Vec::new(), is_negative: false }];
    let mut found: Vec<(Range<usize>, Vec<usize>)> = Vec::new();
    let mut barred: Vec<Range<usize>> = Vec::new();
    let mut chars = pattern.char_indices().skip_while(|(at, _)| *at < flags).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '[' => skip_class(&mut chars),
            '(' => {
                let rest = pattern.get(at + 1..).unwrap_or_default();
                let is_negative = rest.starts_with("?!") || rest.starts_with("?<!");
                let inside = at + 1 + prefix_of_group(rest);
                while chars.next_if(|(next, _)| *next < inside).is_some() {}
                open.push(Open { inside, bars: Vec::new(), is_negative });
            }
            '|' => open.last_mut().into_iter().for_each(|group| group.bars.push(at)),
            ')' if open.len() > 1 => {
                let Some(group) = open.pop() else { break };
                let is_repeated = chars.peek().is_some_and(|(_, next)| "*+?{".contains(*next));
                if is_repeated || group.is_negative {
                    barred.push(group.inside..at);
                } else if !group.bars.is_empty() {
                    found.push((group.inside..at, group.bars));
                }
            }
            _ => {}
        }
    }
    if let Some(whole) = open.into_iter().next().filter(|whole| !whole.bars.is_empty()) {
        found.push((whole.inside..pattern.len(), whole.bars));
    }
    let is_free =
        |range: &Range<usize>| !barred.iter().any(|outer| outer.start <= range.start && range.end <= outer.end);
    let each = found.into_iter().filter(|(range, _)| is_free(range)).flat_map(|(range, bars)| {
        let starts = std::iter::once(range.start).chain(bars.iter().map(|bar| bar + 1)).collect::<Vec<_>>();
        let ends = bars.into_iter().chain([range.end]).collect::<Vec<_>>();
        let (before, after) = (pattern.get(..range.start), pattern.get(range.end..));
        starts.into_iter().zip(ends).filter_map(move |(start, end)| {
            let text = pattern.get(start..end)?;
            Some(Alternative { text: text.to_owned(), pattern: format!("{}{text}{}", before?, after?) })
        })
    });
    each.take(MOST).collect()
}

/// How long flags for the whole pattern are, `(?i)`.
fn leading_flags(pattern: &str) -> usize {
    let Some(rest) = pattern.strip_prefix("(?") else { return 0 };
    match rest.split_once(')') {
        Some((flags, _)) if !flags.is_empty() && flags.chars().all(|c| c.is_ascii_alphabetic()) => flags.len() + 3,
        _ => 0,
    }
}

/// How long what says the kind of a group is: `?:`, `?=`, `?P<name>`.
fn prefix_of_group(rest: &str) -> usize {
    let Some(kind) = rest.strip_prefix('?') else { return 0 };
    for plain in ["<=", "<!", ":", "=", "!", ">"] {
        if kind.starts_with(plain) {
            return 1 + plain.len();
        }
    }
    // A name, or flags up to a colon.
    let end = if kind.starts_with('<') || kind.starts_with("P<") { kind.find('>') } else { kind.find(':') };
    end.map_or(0, |end| end + 2)
}

fn skip_class(chars: &mut impl Iterator<Item = (usize, char)>) {
    let mut first = true;
    while let Some((_, c)) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '^' if first => continue,
            ']' if !first => return,
            _ => {}
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_are_tried_one_by_one_where_each_has_to_match() {
        for (pattern, expected) in [
            ("query", &[][..]),
            (".*query|.*valeu", &[(".*query", ".*query"), (".*valeu", ".*valeu")]),
            (r".*\.(q|v)_proj", &[("q", r".*\.(q)_proj"), ("v", r".*\.(v)_proj")]),
            ("(?i)a|b", &[("a", "(?i)a"), ("b", "(?i)b")]),
            ("(?:a|b)+c", &[]),
            ("(?!a|b)c", &[]),
            (r"a\|b[|)]c", &[]),
            ("(?P<x>a|b)", &[("a", "(?P<x>a)"), ("b", "(?P<x>b)")]),
            ("((a|b)c)*", &[]),
            ("[]|]a|b", &[("[]|]a", "[]|]a"), ("b", "b")]),
            ("a|b)", &[("a", "a"), ("b)", "b)")]),
        ] {
            let found: Vec<_> = alternatives(pattern).into_iter().map(|one| (one.text, one.pattern)).collect();
            let found: Vec<_> = found.iter().map(|(text, whole)| (text.as_str(), whole.as_str())).collect();
            assert_eq!(found, expected, "{pattern}");
        }
    }
}
