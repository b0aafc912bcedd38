--[[
chord_hold: prolongs a claim that is still the caller's, or that has run out and nobody else has taken.
KEYS: "prefix::kombu:"
ARGV: 1 group id   2 token   3 until when, ms
Returns: 1, or 0 where another has it or the chord is gone
]]
local key = KEYS[1] .. 'chord:' .. ARGV[1]
if redis.call('HGET', key, 'claim') ~= ARGV[2] then
  return 0
end
redis.call('HSET', key, 'until', ARGV[3])
return 1
