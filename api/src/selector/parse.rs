//! The grammar of label selectors: a lexer over bytes, and a parser that looks one token ahead.
//!
//! Errors, and what is let through, are upstream's to the letter: `a in (,)` has the values "" and no error.

use super::{Operator, Requirement, RequirementError, SelectorError};
use crate::field::{Errors, Path};
use crate::names;

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Less,
    NotEquals,
    Open,
    /// An identifier, or a keyword where it stands as a value.
    Word(String),
    /// Symbols that begin no operator.
    Error(String),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::End => "",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Not => "!",
            Token::DoubleEquals => "==",
            Token::Equals => "=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::NotEquals => "!=",
            Token::Open => "(",
            Token::Word(text) | Token::Error(text) => text,
        }
    }
}

/// The tokens of a text; what remains of it.
struct Tokens<'a> {
    rest: &'a str,
    ahead: Option<Token>,
}

const SYMBOLS: &[char] = &['=', '!', '(', ')', ',', '>', '<'];
const SPACE: &[char] = &[' ', '\t', '\r', '\n'];

impl Tokens<'_> {
    fn lex(&mut self) -> Token {
        self.rest = self.rest.trim_start_matches(SPACE);
        let Some(first) = self.rest.chars().next() else { return Token::End };
        if !SYMBOLS.contains(&first) {
            let end =
                self.rest.find(|c| SYMBOLS.contains(&c) || SPACE.contains(&c)).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Token::Word(word.to_owned());
        }
        // Every symbol is an operator by itself, so the longest is of one or two.
        let (token, length) = match self.rest.as_bytes() {
            [b'=', b'=', ..] => (Token::DoubleEquals, 2),
            [b'!', b'=', ..] => (Token::NotEquals, 2),
            [b'=', ..] => (Token::Equals, 1),
            [b'!', ..] => (Token::Not, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            [b',', ..] => (Token::Comma, 1),
            [b'>', ..] => (Token::Greater, 1),
            [b'<', ..] => (Token::Less, 1),
            _ => (Token::Error(self.rest.to_owned()), self.rest.len()),
        };
        self.rest = &self.rest[length..];
        token
    }

    fn peek(&mut self) -> &Token {
        if self.ahead.is_none() {
            self.ahead = Some(self.lex());
        }
        self.ahead.as_ref().expect("just filled")
    }

    fn next(&mut self) -> Token {
        match self.ahead.take() {
            Some(token) => token,
            None => self.lex(),
        }
    }
}

fn expected(found: &Token, expected: &'static str) -> RequirementError {
    RequirementError::Syntax { found: found.text().to_owned(), expected }
}

/// All requirements of a selector, in its order.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut tokens = Tokens { rest: text, ahead: None };
    let wrong = |found: &Token, expected| SelectorError::Syntax { found: found.text().to_owned(), expected };
    let mut found = Vec::new();
    loop {
        match tokens.peek() {
            Token::End => return Ok(found),
            Token::Word(_) | Token::Not => found.push(requirement(&mut tokens)?),
            other => return Err(wrong(other, "!, identifier, or 'end of string'")),
        }
        match tokens.next() {
            Token::End => return Ok(found),
            Token::Comma => match tokens.peek() {
                Token::Word(_) | Token::Not => {}
                other => return Err(wrong(other, "identifier after ','")),
            },
            other => return Err(wrong(&other, "',' or 'end of string'")),
        }
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, RequirementError> {
    let path = Path::default();
    let mut first = tokens.next();
    let negated = first == Token::Not;
    if negated {
        first = tokens.next();
    }
    let Token::Word(key) = first else { return Err(expected(&first, "identifier")) };
    let wrong = names::qualified_name(&key);
    if !wrong.is_empty() {
        let mut errors = Errors::default();
        errors.invalid(&path, key.as_str(), wrong.join("; "));
        return Err(RequirementError::Invalid(errors));
    }
    let bare = matches!(tokens.peek(), Token::End | Token::Comma);
    if negated {
        return Requirement::new(&key, Operator::DoesNotExist, [], &path);
    }
    if bare {
        return Requirement::new(&key, Operator::Exists, [], &path);
    }
    let operator = match tokens.next() {
        Token::Word(word) if word == "in" => Operator::In,
        Token::Word(word) if word == "notin" => Operator::NotIn,
        Token::Equals => Operator::Equals,
        Token::DoubleEquals => Operator::DoubleEquals,
        Token::NotEquals => Operator::NotEquals,
        Token::Greater => Operator::GreaterThan,
        Token::Less => Operator::LessThan,
        other => return Err(expected(&other, OPERATORS)),
    };
    let values = match operator {
        Operator::In | Operator::NotIn => listed(tokens)?,
        _ => vec![exact(tokens)?],
    };
    Requirement::new(&key, operator, values, &path)
}

/// `(x,y,z)`; an empty place is the empty value.
fn listed(tokens: &mut Tokens<'_>) -> Result<Vec<String>, RequirementError> {
    match tokens.next() {
        Token::Open => {}
        other => return Err(RequirementError::NoList(other.text().to_owned())),
    }
    match tokens.peek() {
        Token::Word(_) | Token::Comma => {}
        Token::Close => {
            tokens.next();
            return Ok(vec![String::new()]);
        }
        other => return Err(expected(other, "',', ')' or identifier")),
    }
    let mut values = Vec::new();
    loop {
        match tokens.next() {
            Token::Word(word) => {
                values.push(word);
                match tokens.peek() {
                    Token::Comma => {}
                    Token::Close => break,
                    other => return Err(expected(other, "',' or ')'")),
                }
            }
            Token::Comma => {
                if values.is_empty() {
                    values.push(String::new());
                }
                match tokens.peek() {
                    Token::Close => {
                        values.push(String::new());
                        break;
                    }
                    Token::Comma => values.push(String::new()),
                    _ => {}
                }
            }
            other => return Err(expected(&other, "',', or identifier")),
        }
    }
    tokens.next();
    Ok(values)
}

fn exact(tokens: &mut Tokens<'_>) -> Result<String, RequirementError> {
    if matches!(tokens.peek(), Token::End | Token::Comma) {
        return Ok(String::new());
    }
    match tokens.next() {
        Token::Word(word) => Ok(word),
        other => Err(expected(&other, "identifier")),
    }
}
