-- Auto-routing of the PACS in a box: each new series goes to Overread, and again while Overread is away.
-- A series that came from Overread does not go back to it.

local MODALITY = 'overread'
local AE_TITLE = 'OVERREAD'
local FIRST_PAUSE, LONGEST_PAUSE = 10, 600 -- seconds

local waiting = {} -- of each series that is to be sent: how often that failed, and when it is tried next
local sending = {} -- of each job: its series, and how often that failed

local function send(series, failures)
   local request = { Resources = { series }, Synchronous = false }
   local answer = RestApiPost('/modalities/' .. MODALITY .. '/store', DumpJson(request, true))
   local job = answer and ParseJson(answer)
   if job and job['ID'] then
      sending[job['ID']] = { series = series, failures = failures }
   else
      waiting[series] = { failures = failures + 1, at = os.time() + FIRST_PAUSE }
   end
end

function OnStableSeries(series, tags, metadata)
   local instances = ParseJson(RestApiGet('/series/' .. series))['Instances']
   local known = ParseJson(RestApiGet('/instances/' .. instances[1] .. '/metadata?expand'))
   if known['RemoteAET'] ~= AE_TITLE then
      send(series, 0)
   end
end

function OnJobSuccess(job)
   sending[job] = nil
end

function OnJobFailure(job)
   local sent = sending[job]
   sending[job] = nil
   if sent then
      local pause = math.min(FIRST_PAUSE * 2 ^ sent.failures, LONGEST_PAUSE)
      waiting[sent.series] = { failures = sent.failures + 1, at = os.time() + pause }
   end
end

-- Each LuaHeartBeatPeriod (Orthanc 1.11.1 or newer).
function OnHeartBeat()
   for series, it in pairs(waiting) do
      if it.at <= os.time() then
         waiting[series] = nil -- allowed within pairs
         send(series, it.failures)
      end
   end
end
