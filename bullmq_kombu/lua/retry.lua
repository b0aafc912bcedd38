--[[
retry: the job in hand goes on as another attempt, with what its own task says of it.
Uses: _queue _parents _add _promise _finish
KEYS: "prefix:queue:"
ARGV: 1 now, ms   2 id   3 token   4 delay, ms   5 reason, ''   6 stack trace of this attempt, ''
  7 '' or JSON: lifo, skip (no attempt is counted), log   8... fields to write to the hash and their values
Returns: 0, or -1 no such job, -2 not locked, -3 not active, -6 locked by another delivery
Events: delayed or waiting
]]
local more = ARGV[7] ~= '' and cjson.decode(ARGV[7]) or {}
more.fields = {}
for at = 8, #ARGV do
  more.fields[at - 7] = ARGV[at]
end

-- The trace joins those of the attempts before, as many as the job wants to keep.
local function traces_with(trace)
  local found = redis.call('HMGET', KEYS[1] .. ARGV[2], 'stacktrace', 'opts')
  local traces = decoded(found[1])
  traces[#traces + 1] = trace
  local limit = tonumber(decoded(found[2]).stackTraceLimit) or #traces
  while #traces > limit do
    table.remove(traces, 1)
  end
  return #traces > 0 and cjson.encode(traces) or '[]'
end

local stack = ARGV[6] ~= '' and traces_with(ARGV[6]) or ''
local reason = ARGV[5] ~= '' and ARGV[5] or nil
return try_again(open_queue(KEYS[1]), ARGV[2], ARGV[3], tonumber(ARGV[1]), reason, stack, tonumber(ARGV[4]), more)
