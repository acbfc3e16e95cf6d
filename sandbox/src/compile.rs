//! A stand-in for compiling.
/// Why not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);
/// Compiles.
pub fn compile(bytes: &[u8]) -> Result<Vec<u8>, CompileError> {
    crate::engine::engine().precompile_module(bytes).map_err(|e| CompileError(format!("{e:#}")))
}
