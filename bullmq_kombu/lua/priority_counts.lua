--[[
priority_counts: how many jobs wait with each priority.
KEYS: "prefix:queue:"
ARGV: priorities
Returns: a number for each; those of 0 are the ones that wait without a priority
]]
local PER_PRIORITY = 4294967296
local found = {}
for place, text in ipairs(ARGV) do
  local priority = tonumber(text)
  if priority == 0 then
    found[place] = redis.call('LLEN', KEYS[1] .. 'wait') + redis.call('LLEN', KEYS[1] .. 'paused')
  else
    found[place] = redis.call('ZCOUNT', KEYS[1] .. 'prioritized', priority * PER_PRIORITY, (priority + 1) * PER_PRIORITY - 1)
  end
end
return found
