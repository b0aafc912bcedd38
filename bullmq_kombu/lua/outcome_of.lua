--[[
outcome_of: how a job has ended, if it has.
KEYS: "prefix:queue:"
ARGV: 1 id
Returns: {completed, return value}, {failed, reason}, {missing, ''} where there is no such job, or {'', ''}
]]
local key = KEYS[1] .. ARGV[1]
if redis.call('EXISTS', key) == 0 then
  return { 'missing', '' }
elseif redis.call('ZSCORE', KEYS[1] .. 'completed', ARGV[1]) then
  return { 'completed', redis.call('HGET', key, 'returnvalue') or 'null' }
elseif redis.call('ZSCORE', KEYS[1] .. 'failed', ARGV[1]) then
  return { 'failed', redis.call('HGET', key, 'failedReason') or '' }
end
return { '', '' }
