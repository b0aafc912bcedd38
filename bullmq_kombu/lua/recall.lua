--[[
recall: looks for jobs that were taken by calls whose answer was lost, or has not been read, and puts them back to the head
of their queues, or keeps their locks.
Uses: _queue _parents _add _promise _finish
KEYS: one "prefix:queue:" for each queue
ARGV: 1 '' to put them back, or lock in ms to keep them   2... the tokens of those calls
Returns: for each job found: number of its queue, id, token
Events: waiting
]]
local lock_ms, tokens, found = ARGV[1], {}, {}
for at = 2, #ARGV do
  tokens[ARGV[at]] = true
end

for number, base in ipairs(KEYS) do
  local q
  -- The newest is at the head: so the one taken first is put back last, before the others.
  for _, id in ipairs(redis.call('LRANGE', base .. 'active', 0, -1)) do
    local held = redis.call('GET', base .. id .. ':lock')
    if held and tokens[held] then
      if lock_ms == '' then
        q = q or open_queue(base)
        put_back(q, id, held)
      else
        redis.call('PEXPIRE', base .. id .. ':lock', lock_ms)
        redis.call('SREM', base .. 'stalled', id)
      end
      found[#found + 1] = number
      found[#found + 1] = id
      found[#found + 1] = held
    end
  end
end
return found
