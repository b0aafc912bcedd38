--[[
chord_close: forgets the parts of a chord that has gone on. What is left says so to parts that are run again late.
KEYS: "prefix::kombu:"
ARGV: 1 group id   2 token of the claim   3 how long the rest stays, ms
Returns: 1, or 0 where the claim is not the caller's
]]
local key = KEYS[1] .. 'chord:' .. ARGV[1]
if redis.call('HGET', key, 'claim') ~= ARGV[2] then
  return 0
end
redis.call('DEL', key)
redis.call('HSET', key, 'done', 1)
redis.call('PEXPIRE', key, ARGV[3])
return 1
