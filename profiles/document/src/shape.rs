//! Places where a text cannot be KDL, told from its tokens: the parser calls itself once for each place that it cannot read, so
//! they are counted before it is asked.

use crate::token::{Kind, Token, tokens};

/// The places, in order: words that can be neither a name nor a value, and tokens where none of their kind can stand. None in
/// a text that is KDL; behind a `/-` the parser lets some pass that is not.
pub(crate) fn misplaced(text: &str) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    let tokens: Vec<_> = tokens(text).into_iter().filter(|token| token.kind != Kind::BlockComment).collect();
    let mut place = Place::Start;
    // Whether the node, and each one around it, is switched off: the parser then asks for no end behind its braces.
    let (mut is_off, mut around) = (false, Vec::new());
    // The last token but for ends of lines: what `/-` switches off may stand on a later line, and so may an `=` behind a `\`.
    let mut solid: Option<&Token<'_>> = None;
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let after = tokens.get(at + 1).map(|token| token.kind);
        let was = before.map(|token| token.kind);
        let touches = before.is_some_and(|before| before.end() == token.at);
        let right = match token.kind {
            Kind::Word => {
                let typed = was == Some(Kind::OpenType);
                let named = place == Place::Start && !typed;
                let right = token.is_sound()
                    && (!named || token.is_name())
                    && !(touches && was == Some(Kind::Word))
                    && (place != Place::Behind || was == Some(Kind::SlashDash))
                    && !(named && after == Some(Kind::Equals));
                if named {
                    place = Place::Inside;
                }
                right
            }
            Kind::Equals => {
                solid.is_some_and(|solid| solid.kind == Kind::Word && solid.is_name())
                    && matches!(was, Some(Kind::Word | Kind::Continued))
                    && matches!(after, Some(Kind::Word | Kind::OpenType | Kind::Continued))
            }
            Kind::OpenType => after == Some(Kind::Word),
            Kind::CloseType => was == Some(Kind::Word) && matches!(after, Some(Kind::Word | Kind::Continued)),
            Kind::Open => {
                let right = place != Place::Start;
                place = Place::Start;
                around.push(std::mem::take(&mut is_off));
                right
            }
            Kind::Close => {
                place = if around.pop() == Some(true) { Place::Inside } else { Place::Behind };
                true
            }
            Kind::Newline | Kind::Semicolon | Kind::LineComment => {
                if solid.is_none_or(|solid| solid.kind != Kind::SlashDash) {
                    place = Place::Start;
                    is_off = false;
                }
                true
            }
            Kind::SlashDash => {
                is_off |= place == Place::Start;
                was != Some(Kind::SlashDash)
            }
            Kind::Continued => {
                token.text.ends_with(['\n', '\r']) || token.end() >= text.len() || !token.text.is_ascii()
            }
            Kind::BlockComment => true,
        };
        if !matches!(token.kind, Kind::Newline | Kind::LineComment | Kind::Continued) {
            solid = Some(token);
        }
        if !right {
            places.push((token.at, token.end()));
        }
    }
    places
}

/// Where in a node a token stands.
#[derive(PartialEq, Eq)]
enum Place {
    /// Before its name.
    Start,
    /// Behind its name.
    Inside,
    /// Behind its braces.
    Behind,
}
