;; What `capacity::measure` runs. Assemble it into `fuel.wasm` after a change; a test compares.
(module
  (memory (export "memory") 16)
  (func (export "_start") (local $left i32) (local $random i64) (local $at i32)
    (local.set $left (i32.const 28000000))
    (local.set $random (i64.const 88172645463325252))
    (loop $again
      ;; Marsaglia's xorshift: nobody can foretell what follows without computing it.
      (local.set $random (i64.xor (local.get $random) (i64.shl (local.get $random) (i64.const 13))))
      (local.set $random (i64.xor (local.get $random) (i64.shr_u (local.get $random) (i64.const 7))))
      (local.set $random (i64.xor (local.get $random) (i64.shl (local.get $random) (i64.const 17))))
      ;; A cell of 8 bytes, anywhere in a megabyte.
      (local.set $at (i32.and (i32.wrap_i64 (local.get $random)) (i32.const 0xffff8)))
      (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (local.get $random)))
      ;; Every fourth time, on average.
      (if (i64.eqz (i64.and (local.get $random) (i64.const 0x300000000)))
        (then (i64.store (local.get $at) (i64.mul (i64.load (local.get $at)) (i64.const 0x9e3779b97f4a7c15)))))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))
