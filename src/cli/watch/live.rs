//! The terminal: taken over at the start, given back at the end, however that comes: `q`, Ctrl-C, a signal, a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use super::looks::{Look, Watched};
use super::view::{self, Screen};
use crate::cli::http::ClientError;

/// How long the thread that reads keys may take to notice the end.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// Gives the terminal back. A panic does so by itself, before it says what it is.
struct Restore(Arc<AtomicBool>);

impl Drop for Restore {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        // Twice would put the cursor back to where it was before the panic was told.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Up,
    Down,
    /// The window has another size, or nothing: draw again.
    Redraw,
}

/// Shows nodes until `q`, Ctrl-C or a signal. Errors: what is there is no terminal.
pub async fn show(
    watched: &mut [Watched],
    looks: &mut mpsc::Receiver<(usize, Result<Look, ClientError>)>,
) -> Result<()> {
    let mut terminal = ratatui::try_init().context("taking over the terminal")?;
    let over = Arc::new(AtomicBool::new(false));
    let _restore = Restore(Arc::clone(&over));
    let mut wishes = keys(over)?;
    let mut stop = std::pin::pin!(crate::cli::told_to_stop());
    let mut selected = 0;
    loop {
        terminal.draw(|frame| view::draw(frame, &Screen { watched, selected })).context("drawing")?;
        tokio::select! {
            () = &mut stop => return Ok(()),
            look = looks.recv() => {
                let (index, look) = look.expect("nodes are looked at for as long as this task runs");
                watched[index].take(look);
            }
            // The thread is gone where the terminal is.
            wish = wishes.recv() => match wish {
                Some(Wish::Quit) | None => return Ok(()),
                Some(Wish::Up) => selected = selected.saturating_sub(1),
                Some(Wish::Down) => selected = (selected + 1).min(watched.len() - 1),
                Some(Wish::Redraw) => {}
            },
        }
    }
}

/// Reads keys on a thread of its own, which may block, until `over`.
fn keys(over: Arc<AtomicBool>) -> Result<mpsc::Receiver<Wish>> {
    let (sender, wishes) = mpsc::channel(16);
    let read = move || {
        while !over.load(Ordering::Relaxed) {
            let event = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let Ok(event) = event else { return };
            if let Some(wish) = wish(&event)
                && sender.blocking_send(wish).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new().name("tenon-keys".into()).spawn(read)?;
    Ok(wishes)
}

fn wish(event: &Event) -> Option<Wish> {
    match event {
        Event::Key(key) if key.kind == KeyEventKind::Release => None,
        Event::Key(key) => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Quit),
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
            KeyCode::Up | KeyCode::Char('k') => Some(Wish::Up),
            KeyCode::Down | KeyCode::Char('j') => Some(Wish::Down),
            _ => None,
        },
        Event::Resize(..) => Some(Wish::Redraw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_quit_and_choose() {
        let key = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Wish::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Some(Wish::Down));
        assert_eq!(wish(&Event::Resize(80, 24)), Some(Wish::Redraw));
    }
}
