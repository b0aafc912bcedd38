--[[
declare: says that queues which Celery made for itself exist, for a while from now on, and that their bindings do. One that is new
  starts empty: what came for an older one of the same name is not for it.
KEYS: "prefix::kombu:"
ARGV: 1 now, ms   then for each queue: name, kept for (ms), number of bindings, and for each binding: exchange, binding
Returns: 0
]]
local at = 2
while at <= #ARGV do
  local queue, kept, bindings = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if redis.call('EXISTS', KEYS[1] .. 'queue:' .. queue) == 0 then
    redis.call('DEL', KEYS[1] .. 'messages:' .. queue, KEYS[1] .. 'marker:' .. queue)
  end
  redis.call('SET', KEYS[1] .. 'queue:' .. queue, kept, 'PX', kept)
  redis.call('PEXPIRE', KEYS[1] .. 'messages:' .. queue, kept)
  redis.call('PEXPIRE', KEYS[1] .. 'marker:' .. queue, kept)
  for binding = 1, bindings do
    local exchange = ARGV[at + 1 + 2 * binding]
    redis.call('HSET', KEYS[1] .. 'bindings:' .. exchange, ARGV[at + 2 + 2 * binding], ARGV[1] + kept)
  end
  at = at + 3 + 2 * bindings
end
return 0
