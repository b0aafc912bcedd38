--[[
commit: one job is run at most once from now on: whoever takes it after a stall fails it.
Uses: _queue _promise
KEYS: "prefix:queue:"
ARGV: 1 id   2 token of the delivery
Returns: 0, or -1 no such job, -2 not locked, -6 locked by another delivery
]]
return commit({ base = KEYS[1] }, ARGV[1], ARGV[2])
