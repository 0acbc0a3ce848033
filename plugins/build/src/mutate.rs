//! Components that are nearly right: one instruction differs, in type and size the same, as if an author had slipped.

use anyhow::{Context, Result};
use wasmparser::{Operator, Parser, Payload};

/// Up to `count` versions of `component`, each with one other instruction (`<` for `<=`, `+` for `-`, a constant that is
/// off by one); the same ones for the same `seed`.
///
/// Errors: it is no component.
pub fn mutants(component: &[u8], seed: u64, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut places = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        if let Payload::CodeSectionEntry(body) = payload.context("reading the component")? {
            for operator in body.get_operators_reader()?.into_iter_with_offsets() {
                let (operator, at) = operator?;
                if let Some(other) = other(&operator) {
                    // A constant's value stands behind its opcode.
                    let is_constant = matches!(operator, Operator::I64Const { .. } | Operator::I32Const { .. });
                    places.push((at + usize::from(is_constant), other));
                }
            }
        }
    }
    let mut state = seed;
    let mut mutants = Vec::new();
    while mutants.len() < count && !places.is_empty() {
        // Knuth's multiplier; the upper bits are the random ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let chosen = (state >> 33) as usize % places.len();
        let (at, byte) = places.swap_remove(chosen);
        let mut mutant = component.to_vec();
        mutant[at] = byte;
        mutants.push(mutant);
    }
    Ok(mutants)
}

/// The byte that makes another instruction of the same type of `operator`; none: it is left alone.
fn other(operator: &Operator<'_>) -> Option<u8> {
    Some(match operator {
        Operator::I64Add => 0x7d,
        Operator::I64Sub => 0x7c,
        Operator::I64Mul => 0x7c,
        Operator::I64DivU => 0x82,
        Operator::I64LtU => 0x58,
        Operator::I64LeU => 0x54,
        Operator::I64GtU => 0x5a,
        Operator::I64GeU => 0x56,
        Operator::I64Eq => 0x52,
        Operator::I64Ne => 0x51,
        Operator::I64And => 0x84,
        Operator::I64Or => 0x83,
        Operator::I32Add => 0x6b,
        Operator::I32Sub => 0x6a,
        Operator::I32LtU => 0x4d,
        Operator::I32LeU => 0x49,
        Operator::I32Eq => 0x47,
        Operator::I32Ne => 0x46,
        // In one byte, and it stays in one.
        Operator::I64Const { value } if (0..63).contains(value) => u8::try_from(value + 1).ok()?,
        Operator::I32Const { value } if (0..63).contains(value) => u8::try_from(value + 1).ok()?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mutant_differs_in_one_byte_and_is_still_a_component() {
        let component = crate::fixture::idle("rate-limit-policy").unwrap();
        assert!(mutants(&component, 1, 10).unwrap().len() <= 10, "there may be nothing to change in it");
        let component = std::fs::read(crate::path("token-bucket")).unwrap();
        let some = mutants(&component, 1, 50).unwrap();
        assert_eq!(some.len(), 50);
        assert_eq!(some, mutants(&component, 1, 50).unwrap());
        assert_ne!(some, mutants(&component, 2, 50).unwrap());
        for mutant in &some {
            let differing = component.iter().zip(mutant).filter(|(one, other)| one != other).count();
            assert_eq!((differing, mutant.len()), (1, component.len()));
            Parser::new(0).parse_all(mutant).for_each(|payload| drop(payload.unwrap()));
        }
    }
}
